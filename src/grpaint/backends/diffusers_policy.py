"""A diffusers pipeline behind the Policy protocol: casting, guidance, batching and the sets of weights."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from grpaint.backends.base_model import find_base
from grpaint.backends.embeddings import EmbeddingCache, Parts, made_by
from grpaint.backends.pipeline import file_name, open_pipeline, reading, take_adapter, take_whole
from grpaint.backends.upcast import upcast
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import ConfigError
from grpaint.core.path import Point
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Prediction, read
from grpaint.core.rng import Key, noise
from grpaint.core.runtime import Runtime

if TYPE_CHECKING:
    from grpaint.backends.diffusers import Diffusers


@dataclass(frozen=True)
class TextCondition:
    """Text embeddings of distinct captions and which of them each row uses, so that a group shares one copy."""

    parts: tuple[Tensor, ...]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, index: Tensor) -> Self:
        return replace(self, index=self.index[index.cpu()])

    def tensors(self, rows: slice) -> tuple[Tensor, ...]:
        """The embeddings of some rows, one row each."""
        return tuple(part[self.index[rows]] for part in self.parts)


class DiffusersPolicy:
    """A diffusers pipeline behind the Policy protocol. Latents are scaled as the network sees them, in fp32."""

    def __init__(self, spec: "Diffusers", pipe: Any, weights: WeightSets, runtime: Runtime) -> None:
        self.spec, self.pipe, self.weights, self.runtime = spec, pipe, weights, runtime
        self.name, self.family = spec.named_family
        self.path, self.kind, self.meter = spec.path, spec.parametrisation, Meter()
        self.guidance = spec.guidance if spec.guided_by == "cfg" else 1.0  # a distilled model's stays what it is told
        self.distilled = spec.guided_by == "distilled"
        self._shape, self._reads = spec.sample_shape, runtime  # with which encoders read, whatever the network does
        weights_of = getattr(pipe, self.family.NETWORK).parameters()
        self._dtype = next(p.dtype for p in weights_of if p.is_floating_point())  # 4-bit ones are not
        self._embed: Callable[[Sequence[str]], Iterable[Parts]] = self._encoded
        if spec.embeddings == "cache" and not runtime.hollow:
            by = made_by(spec.readers, self.family, spec.tokens, runtime)
            self._embed = EmbeddingCache(spec.cache_folder, by, self._encoded)
        self._empty = self._told([""])
        self._told_of_truncation = False

    def encode(self, prompts: Sequence[Prompt]) -> TextCondition:
        """Captions to embeddings of the frozen text encoders; one that these do not read to its end is counted."""
        texts = [prompt.text for prompt in prompts]
        found = self.family.room(self.pipe, self.spec.tokens)
        if found:
            tokenizer, room = found
            lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids]
            cut = [(text, length) for text, length in zip(texts, lengths, strict=True) if length > room]
            self.meter.captions(len(texts), len(cut))
            if cut and not self._told_of_truncation:
                self._told_of_truncation = True
                _tell_of_truncation(*cut[0], room)
        return self._told(texts)

    def prepare(self, captions: Iterable[str]) -> int:
        """Fill the cache of embeddings, where there is one; how many captions it lacked."""
        return self._embed.prepare(captions) if isinstance(self._embed, EmbeddingCache) else 0

    def _told(self, texts: Sequence[str]) -> TextCondition:
        distinct = list(dict.fromkeys(texts))
        parts = tuple(map(_joined, zip(*self._embed(distinct), strict=True)))
        device = self.runtime.device  # lengths stay on the CPU
        rows = {text: row for row, text in enumerate(distinct)}
        return TextCondition(
            tuple(part.to(device) if part.is_floating_point() else part for part in parts),
            torch.tensor([rows[text] for text in texts]),
        )

    def _encoded(self, texts: Sequence[str]) -> Iterator[Parts]:
        """Each caption by itself: its embedding depends on no other, and is the same with a cache and without."""
        with reading(self.pipe, self.spec.origin, self.family, self._reads) as pipe, torch.no_grad():
            for text in texts:
                yield self.family.encode(pipe, [text], self.spec.tokens)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images in [0, 1], of any size that is whole patches, to the mean of their latents.

        Raises:
            ConfigError: where the size is not.
        """
        whole = self.spec.whole
        if any(side % whole for side in images.shape[-2:]):
            height, width = images.shape[-2:]
            raise ConfigError(
                f"data: images of {height} x {width} pixels; this model's have sides divisible by {whole}. Resize or "
                "crop them so."
            )
        pixels = (images * 2 - 1).to(self.runtime.device)
        return torch.cat(
            [self.family.encode_images(self.pipe, pixels[rows]) for rows in self._vae_batches(len(images))]
        )

    def decode(self, x0: Tensor) -> Tensor:
        """Latents to images in [0, 1], clamped."""
        images = torch.cat([self.family.decode(self.pipe, x0[rows]) for rows in self._vae_batches(len(x0))])
        return ((images + 1) / 2).clamp(0, 1)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        """Keyed start or step noise on the model's device."""
        return noise(key, rows, self._shape).to(self.runtime.device)

    def _vae_batches(self, count: int) -> Iterator[slice]:
        return _batches(count, self.spec.vae_batch)

    def _output(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        self.meter.forward(len(x), recomputed=self.spec.checkpointing)
        with self.runtime.autocast():
            return self.family.call(self.pipe, x.to(self._dtype), t, cond, self.spec.guidance).float()

    def _guided(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        conditional = self._output(x, t, cond)
        if self.guidance == 1 or self.distilled:
            return conditional
        free = self._output(x, t, tuple(part.expand(len(x), *part.shape[1:]) for part in self._empty.parts))
        return self.family.combine(free, conditional, self.guidance)

    def predict(self, x: Tensor, here: Point, cond: TextCondition, weights: Weights = "current") -> Prediction:
        """See :class:`grpaint.core.policy.Policy`; rows beyond ``batch`` go in further calls."""
        t = torch.as_tensor(here.t, device=x.device).flatten().expand(len(x))
        with self.weights.use(weights):
            parts = [self._guided(x[rows], t[rows], cond.tensors(rows)) for rows in _batches(len(x), self.spec.batch)]
        return read(torch.cat(parts), x, here, self.kind)

    def stock(self, texts: Sequence[str], start: Tensor, steps: int) -> Tensor:
        """The latents that the pipeline itself makes of ``start``, by the ODE of its schedule."""
        family, (height, width), own = self.family, self.spec.pixels, self.pipe.scheduler
        self.pipe.scheduler = family.deterministic(own)
        try:
            with reading(self.pipe, self.spec.origin, family, self._reads) as pipe, self.runtime.autocast():
                made = pipe(
                    prompt=list(texts),
                    latents=family.to_stock(start).to(self._dtype),
                    num_inference_steps=steps,
                    height=height,
                    width=width,
                    output_type="latent",
                    **family.arguments(self.spec.guidance, self.spec.guided_by),
                    **family.length(self.spec.tokens),
                )
        finally:
            self.pipe.scheduler = own
        return family.from_stock(made.images.float(), start)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, the network computes in fp32, on its weights as they are rounded."""
        before = self.runtime, self._dtype
        self.runtime, self._dtype = replace(self.runtime, precision="fp32"), torch.float32
        try:
            with upcast(getattr(self.pipe, self.family.NETWORK)):
                yield
        finally:
            self.runtime, self._dtype = before

    def take(self, file: Path) -> None:
        """Read what :meth:`export` wrote into the current weights.

        Raises:
            CheckpointError: where it is of another architecture.
        """
        if self.spec.lora:
            take_adapter(file, self.spec.lora, self.weights.trainable, (self.name, self.family))
        else:
            take_whole(file, getattr(self.pipe, self.family.NETWORK), self.name)

    def open_base(self, folder: Path | None = None, *, exact: bool = False) -> Any:
        """A fresh stock pipeline: of the base, or of a folder made from it; ``exact`` in fp32."""
        base = find_base(str(folder), "", "auto") if folder else self.spec.origin
        runtime = replace(self.runtime, precision="fp32") if exact or not self.spec.lora else self.runtime
        return open_pipeline(base, self.family, runtime, frozen=True)

    def blend(self, into: Weights, keep: float) -> None:
        """See :class:`grpaint.core.policy.Policy`."""
        self.weights.blend(into, keep)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer moves."""
        return iter(self.weights.trainable.values())

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """What a stock pipeline takes up, and the header that says what it is.

        An adapter, for ``pipe.load_lora_weights``, with alpha / rank folded into its second matrix, since programs
        differ in where they look for alpha; otherwise the whole network.
        """
        labels = {"model": "diffusers", "family": self.name, "format": "pt"}
        lora = self.spec.lora
        with self.weights.use(weights):
            if not lora:
                network = getattr(self.pipe, self.family.NETWORK)
                return {name: tensor.detach() for name, tensor in network.state_dict().items()}, labels
            if weights == "reference" and self.weights.adapters:
                raise ValueError("the reference is the model without its adapter: there is nothing to export")
            scale = lora.alpha / lora.rank
            tensors = {
                file_name(self.family, name): p.detach() * (scale if ".lora_B." in name else 1)
                for name, p in self.weights.trainable.items()
            }
        return tensors, labels


def _tell_of_truncation(text: str, length: int, room: int) -> None:
    logging.getLogger(__name__).warning(
        "grpaint: a caption has %d tokens, of which the text encoders read %d: %r; raise model.tokens, or shorten it. "
        "Further ones are counted as prompts/truncated.",
        length,
        room,
        text if len(text) <= 60 else f"{text[:60]}..",
    )


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, count, size))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors; shorter ones are filled with zeros along dimension 1."""
    if parts[0].ndim < 3:
        return torch.cat(list(parts))
    most = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, 0, 0, most - part.shape[1])) for part in parts])
