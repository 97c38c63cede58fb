# docker build -t grpaint .                                                         for CPUs
# docker build -t grpaint --build-arg TORCH_INDEX=https://pypi.org/simple .         for CUDA: PyPI's build of PyTorch brings it
# docker run --rm -v "$PWD:/work" grpaint train --name first
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 1000 grpaint
WORKDIR /opt/grpaint
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src src
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --no-cache-dir ".[data,diffusers,metrics]"
USER grpaint
WORKDIR /work
ENTRYPOINT ["grpaint"]
CMD ["--help"]
