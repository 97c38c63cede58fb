"""The policy around a diffusers pipeline: casting, guidance, batching and the sets of weights."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.backends.adapter_files import load_adapter, tensor_name
from grpaint.backends.adapters import without_adapters
from grpaint.backends.base_model import find_base
from grpaint.backends.diffusers_settings import DiffusersSettings
from grpaint.backends.embeddings import Embedding, EmbeddingCache, encoding_fingerprint
from grpaint.backends.pipeline import load_network, open_pipeline, open_text_encoders
from grpaint.backends.text_condition import TextCondition, concatenate, rows_by_length
from grpaint.backends.upcast import upcast
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import ConfigError, RunError
from grpaint.core.path import Point
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Prediction, read
from grpaint.core.rng import Key, noise
from grpaint.core.runtime import Runtime
from grpaint.storage.layout import LateTensor


class DiffusersPolicy:
    """A diffusers pipeline as a ``Policy``. Latents are in fp32, at the scale that the network sees."""

    def __init__(self, spec: DiffusersSettings, pipe: Any, weights: WeightSets, runtime: Runtime) -> None:
        self.spec, self.pipe, self.weights, self.runtime = spec, pipe, weights, runtime
        self.name, self.family = spec.named_family
        pipe._clip_skip = spec.clip_skip  # what a call of the stock pipeline sets, and the family's encode reads
        self.path, self.kind, self.meter = spec.path, spec.parametrisation, Meter()
        self.guidance = spec.guidance if spec.guided_by == "cfg" else 1.0  # a distilled model takes spec.guidance
        self.distilled = spec.guided_by == "distilled"
        self._latent_shape = spec.sample_shape
        self._encoder_runtime = runtime  # stays when `exact` changes the network's precision
        parameters = getattr(pipe, self.family.NETWORK).parameters()
        self._dtype = next(p.dtype for p in parameters if p.is_floating_point())  # 4-bit weights are integers
        self._embed: Callable[[Sequence[str]], Iterable[Embedding]] = self._encode_each
        if spec.embeddings == "cache" and not runtime.fake:
            fingerprint = encoding_fingerprint(
                spec.text_parts_hash, self.family, spec.tokens, runtime, **spec.clip_arguments
            )
            self._embed = EmbeddingCache(spec.cache_folder, fingerprint, self._encode_each)
        self._empty_caption = self._condition([""])
        self._truncation_logged = False
        if runtime.sharding:
            runtime.sharding.padding = self._padding_output

    def encode(self, prompts: Sequence[Prompt]) -> TextCondition:
        """Embed captions with the frozen text encoders; captions that do not fit into them are counted."""
        texts = [prompt.text for prompt in prompts]
        tokenizer_and_room = self.family.room(self.pipe, self.spec.tokens)
        if tokenizer_and_room:
            tokenizer, room = tokenizer_and_room
            lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids]
            truncated = [(text, length) for text, length in zip(texts, lengths, strict=True) if length > room]
            self.meter.captions(len(texts), len(truncated))
            if truncated and not self._truncation_logged:
                self._truncation_logged = True
                _log_truncation(*truncated[0], room)
        return self._condition(texts)

    def prepare(self, captions: Iterable[str]) -> int:
        """Fill the embedding cache, if there is one, and return how many captions it lacked."""
        return self._embed.prepare(captions) if isinstance(self._embed, EmbeddingCache) else 0

    def _condition(self, texts: Sequence[str]) -> TextCondition:
        distinct = list(dict.fromkeys(texts))
        parts = tuple(map(concatenate, zip(*self._embed(distinct), strict=True)))
        device = self.runtime.device  # lengths stay on the CPU
        rows = {text: row for row, text in enumerate(distinct)}
        return TextCondition(
            tuple(part.to(device) if part.is_floating_point() else part for part in parts),
            torch.tensor([rows[text] for text in texts]),
        )

    def _encode_each(self, texts: Sequence[str]) -> Iterator[Embedding]:
        """Encode captions one by one, so that an embedding depends on no other caption and can be cached."""
        with self._text_encoders() as pipe, torch.no_grad():
            for text in texts:
                yield self.family.encode(pipe, [text], self.spec.tokens)

    @contextmanager
    def _text_encoders(self) -> Iterator[Any]:
        with open_text_encoders(self.pipe, self.spec.origin, self.family, self._encoder_runtime) as pipe:
            yield pipe

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images ``[b, 3, h, w]`` in [0, 1] as the means of the VAE's latents.

        Raises:
            ConfigError: if a side is not divisible by the model's ``side_multiple``.
        """
        try:
            self.spec.check_size(images.shape[-1], images.shape[-2])
        except ValueError as error:
            raise ConfigError(f"{error}.") from error
        pixels = (images * 2 - 1).to(self.runtime.device)
        return torch.cat(
            [self.family.encode_images(self.pipe, pixels[rows]) for rows in self._vae_batches(len(images))]
        )

    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents to images in [0, 1], clamped."""
        images = torch.cat([self.family.decode(self.pipe, x0[rows]) for rows in self._vae_batches(len(x0))])
        return ((images + 1) / 2).clamp(0, 1)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        """Keyed start or step noise on the model's device."""
        return noise(key, rows, self._latent_shape).to(self.runtime.device)

    def _vae_batches(self, count: int) -> Iterator[slice]:
        return _batches(count, self.spec.vae_batch)

    def _output(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        if self.family.ONE_LENGTH and len(groups := rows_by_length(cond[-1])) > 1:
            outputs = [self._output(x[rows], t[rows], tuple(part[rows] for part in cond)) for rows in groups]
            return torch.cat(outputs)[torch.cat(groups).argsort()]
        self.meter.forward(len(x), recomputed=self.spec.checkpointing)
        sharding = self.runtime.sharding
        if sharding is None:
            return self._network_output(x, t, cond)
        if x.requires_grad:
            raise RunError('processes.shard: no gradient reaches the latents of a divided network; use shard = "none".')
        return sharding.call(lambda: self._network_output(x, t, cond), self.weights.active)

    def _network_output(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        with self.runtime.autocast():
            return self.family.call(self.pipe, x.to(self._dtype), t, cond, self.spec.guidance).float()

    def _padding_output(self, weights: Weights) -> Tensor:
        """Call the network on one row of zeros, with a set of weights."""
        x = torch.zeros(1, *self._latent_shape, device=self.runtime.device)
        t = torch.full((1,), float(self.path.grid(1)[0].t), device=x.device)
        with self.weights.only(weights):
            return self._network_output(x, t, self._empty_caption.parts)

    def _guided_output(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        conditional = self._output(x, t, cond)
        if self.guidance == 1 or self.distilled:
            return conditional
        empty = tuple(part.expand(len(x), *part.shape[1:]) for part in self._empty_caption.parts)
        unconditional = self._output(x, t, empty)
        return self.family.combine(unconditional, conditional, self.guidance)

    def predict(self, x: Tensor, here: Point, cond: TextCondition, weights: Weights = "current") -> Prediction:
        """See :class:`grpaint.core.policy.Policy`; more than ``batch`` rows are split into several network calls."""
        t = torch.as_tensor(here.t, device=x.device).flatten().expand(len(x))
        with self.weights.use(weights):
            outputs = [
                self._guided_output(x[rows], t[rows], cond.tensors(rows)) for rows in _batches(len(x), self.spec.batch)
            ]
        return read(torch.cat(outputs), x, here, self.kind)

    def stock(self, texts: Sequence[str], start: Tensor, steps: int) -> Tensor:
        """The latents that the stock pipeline samples from ``start`` in ``steps`` noise-free steps."""
        if self.family.ONE_LENGTH and len(texts) > 1:
            rows = zip(texts, start.split(1), strict=True)
            return torch.cat([self.stock([text], row, steps) for text, row in rows])
        import diffusers

        family, (height, width) = self.family, self.spec.pixels
        own = {part: getattr(self.pipe, part) for part in ("scheduler", *family.GUIDERS)}
        if change := family.stock_ode(own["scheduler"], self.path):
            self.pipe.scheduler = getattr(diffusers, change[0]).from_config(own["scheduler"].config, **change[1])
        for part in family.GUIDERS:
            setattr(self.pipe, part, diffusers.ClassifierFreeGuidance(guidance_scale=self.spec.guidance))
        try:
            with self._text_encoders() as pipe, self.runtime.autocast():
                if self.spec.clip_skip and not hasattr(pipe.text_encoder, "text_model"):
                    vars(pipe.text_encoder)["text_model"] = pipe.text_encoder  # the pipeline looks there for its norm
                for key, value in family.stock_settings(pipe, height, width).items():
                    setattr(pipe, key, value)
                output = pipe(
                    prompt=list(texts),
                    latents=family.to_stock(start).to(self._dtype),
                    num_inference_steps=steps,
                    height=height,
                    width=width,
                    output_type="latent",
                    **family.arguments(self.spec.guidance, self.spec.guided_by),
                    **self.spec.stock_arguments,
                )
        finally:
            for part, value in own.items():
                setattr(self.pipe, part, value)
        return family.from_stock(pipe, output.images.float(), start)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside the block, compute in fp32 with the network's rounded weights."""
        before = self.runtime, self._dtype
        self.runtime, self._dtype = replace(self.runtime, precision="fp32"), torch.float32
        try:
            with upcast(getattr(self.pipe, self.family.NETWORK)):
                yield
        finally:
            self.runtime, self._dtype = before

    def take(self, file: Path) -> None:
        """Load what :meth:`export` wrote into the current weights.

        Raises:
            CheckpointError: if the file is of another architecture.
        """
        if self.spec.lora:
            load_adapter(file, self.spec.lora, self.weights.trainable, (self.name, self.family), self.pipe)
        else:
            network = getattr(self.pipe, self.family.NETWORK)
            with without_adapters(network):
                load_network(file, network, self.name)

    def open_base(self, folder: Path | None = None, *, exact: bool = False) -> Any:
        """Open a fresh stock pipeline, of the base or of an exported ``folder``; ``exact``: in fp32."""
        base = find_base(str(folder), "", "auto") if folder else self.spec.origin
        runtime = replace(self.runtime, precision="fp32") if exact or not self.spec.lora else self.runtime
        return open_pipeline(base, self.family, runtime, frozen=True)

    def blend(self, into: Weights, keep: float, extrapolation: float = 0.0) -> None:
        """See :class:`grpaint.core.policy.Policy`."""
        self.weights.blend(into, keep, extrapolation)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        return iter(self.weights.trainable.values())

    def _whole_network(self, weights: Weights) -> dict[str, Any]:
        """The network's tensors without adapters; it has ``weights`` now. Those of a divided one are read later."""
        network = getattr(self.pipe, self.family.NETWORK)
        with without_adapters(network):
            state = {n: t.detach() for n, t in network.state_dict().items()}
        sharding = self.weights.sharding
        if not sharding:
            return state
        late = {n: LateTensor(t.shape, t.dtype, partial(sharding.whole_parameter, t)) for n, t in state.items()}
        return late | dict(self.weights.whole(self.weights.tensors()[weights]))

    def export(self, weights: Weights = "average") -> tuple[dict[str, Any], dict[str, str]]:
        """The tensors and the header of a file that a stock pipeline can load.

        With LoRA this is an adapter for ``pipe.load_lora_weights``, with alpha / rank folded into its second matrix,
        since programs differ in where they look for alpha; otherwise it is the whole network. Frozen adapters are in
        neither.
        """
        labels = {"model": "diffusers", "family": self.name, "format": "pt"}
        lora = self.spec.lora
        with self.weights.use(weights):
            if not lora:
                return self._whole_network(weights), labels
            if weights == "reference" and self.weights.adapters:
                raise ValueError("the reference is the model without its adapter: there is nothing to export")
            scale = lora.alpha / lora.rank
            tensors = {
                tensor_name(self.family, name): p.detach() * (scale if ".lora_B." in name else 1)
                for name, p in self.weights.trainable.items()
            }
        return tensors, labels


def _log_truncation(text: str, length: int, room: int) -> None:
    logging.getLogger(__name__).warning(
        "grpaint: a caption has %d tokens, of which the text encoders read %d: %r; raise model.tokens, or shorten it. "
        "Later ones are counted as prompts/truncated.",
        length,
        room,
        text if len(text) <= 60 else f"{text[:60]}..",
    )


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, count, size))
