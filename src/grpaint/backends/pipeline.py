"""Open a stock pipeline, whole or in parts, and load the weight files that a run starts from."""

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpaint.backends.base_model import BaseModel, open_parts
from grpaint.backends.fake import meta_modules
from grpaint.backends.families import Family, PipelineFolder
from grpaint.backends.pipeline_files import check_parts
from grpaint.backends.pipeline_parts import check_no_code, listed_parts
from grpaint.core.errors import MissingExtra
from grpaint.core.runtime import Runtime
from grpaint.storage.files import check_tensors, read_weights


def open_pipeline(
    base: BaseModel,
    family: Family,
    runtime: Runtime,
    *,
    frozen: bool,
    without: Collection[str] = (),
    network: nn.Module | None = None,
) -> Any:
    """Open a pipeline in eval mode, with gradients for its network alone; the parts in ``without`` are None.

    ``network``: the pipeline's, if it has been opened.
    Text encoders and a frozen network are in the runtime's precision; a trained network and the VAE are in fp32.
    With a fake runtime only settings are read, and the networks are on the meta device.

    Raises:
        MissingExtra: if diffusers and transformers are not installed.
        CheckpointError: if weights are missing or damaged.
    """
    try:
        import diffusers
        import transformers  # without it diffusers has placeholders that fail when used
    except ImportError as error:
        raise MissingExtra("A diffusers model", "diffusers") from error
    diffusers.logging.set_verbosity_error()  # it would log every truncated caption in every iteration
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # it would recommend torchvision, which nothing here needs
    transformers.logging.disable_progress_bar()
    dtype = runtime.dtype
    dtypes = {"default": dtype, "vae": torch.float32, family.NETWORK: dtype if frozen else torch.float32}
    index = base.settings.settings("model_index.json")
    unused = dict.fromkeys(part for part, kind in index.items() if kind == [None, None])  # SD 3 without T5
    absent = family.WITHOUT | unused | dict.fromkeys(without)
    folder = base.settings.path if runtime.fake else base.folder
    check_no_code(PipelineFolder(folder), absent)
    safe = None if runtime.fake else check_parts(folder, {*absent, *base.file_parts})
    with PipelineFolder(folder).opening(f"a {family.PIPELINE}"):
        parts = meta_modules(folder, absent, dtypes) if runtime.fake else open_parts(base, family, dtypes, without)
        parts |= {} if network is None else {family.NETWORK: network}
        pipe = getattr(diffusers, family.PIPELINE).from_pretrained(
            folder, dtype=dtypes, local_files_only=True, use_safetensors=safe, **absent, **parts
        )
    if "scheduler" not in without:
        pipe.scheduler = base.with_prediction(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(key == family.NETWORK)
    return pipe


def text_encoders(base: BaseModel) -> tuple[str, ...]:
    """The names of a pipeline's text encoders."""
    return tuple(part for part in listed_parts(base.settings) if part.startswith("text_encoder"))


@contextmanager
def open_text_encoders(pipe: Any, base: BaseModel, family: Family, runtime: Runtime) -> Iterator[Any]:
    """Inside the block, ``pipe`` has its text encoders; missing ones are opened from ``base`` and freed afterwards.

    Raises:
        CheckpointError: if their weights are missing or damaged.
    """
    empty = {name for name, part in pipe.components.items() if name.startswith("text_encoder") and part is None}
    missing = tuple(name for name in text_encoders(base) if name in empty) if empty else ()
    if not missing:
        yield pipe
        return
    needed = (*missing, "processor")  # which Qwen-Image 2.1 uses in its constructor
    others = tuple(listed_parts(base.settings, (*needed, *family.WITHOUT)))
    lender = open_pipeline(base, family, runtime, frozen=True, without=others)
    runtime.place(lender)
    pipe.register_modules(**{name: getattr(lender, name) for name in missing})
    del lender
    try:
        yield pipe
    finally:
        pipe.register_modules(**dict.fromkeys(missing))
        gc.collect()  # modules may be in reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_network(file: Path, network: nn.Module, name: str) -> None:
    """Load a whole network of the family ``name``.

    Raises:
        CheckpointError: if the file is of another family or architecture.
    """
    stored, metadata = read_weights(file)
    check_tensors(file, stored, network.state_dict(), metadata, {"family": name})
    network.load_state_dict(stored)
