"""Any supported diffusers pipeline, trained whole or through LoRA.

The house samples; the pipeline lends its text encoders, its network and its VAE. What differs between pipelines is in
:mod:`grpaint.backends.families`; casting, guidance, batching and adapters are here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from pickle import UnpicklingError
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from grpaint.backends.adapters import Lora, add_adapter
from grpaint.backends.families import FAMILIES, Family, Folder, Guidance, find
from grpaint.backends.hollow import parts
from grpaint.backends.hub import check_parts, located
from grpaint.backends.runtime import Runtime
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra
from grpaint.core.files import check_tensors, read_names, read_weights
from grpaint.core.path import Path, Point
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Parametrisation, Prediction, read
from grpaint.core.rng import Key, noise


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


@dataclass(frozen=True)
class Diffusers:
    """Any supported pipeline of diffusers, from a folder or a hub: ``[model] kind = "diffusers"``.

    - ``base``: a local folder in the diffusers layout, or a hub id. ``family`` "auto" goes by its pipeline class;
      "module:Name" is one of your own.
    - ``guidance`` w: with ``guidance_kind`` "cfg" it extrapolates from the empty caption (1 is none; else two network
      calls a prediction); "distilled" models are told it and called once; "auto" takes what the model can do.
    - ``height``, ``width``: pixels, 0 for the model's own. ``tokens``: of a caption that are read, 0 for as many as the
      stock pipeline reads; SD and SDXL read more than 75 in windows of 75.
    - ``batch``: rows of one network call; ``vae_batch``: images of one VAE call, ``vae_tiling`` a tile of them at a
      time. ``checkpointing`` computes activations a second time in the backward instead of keeping them.
    - ``start``: a ``.safetensors`` file or checkpoint folder made by an earlier run, a whole network or an adapter; an
      adapter goes on being trained, and the reference is the model that it made. ``adapter``: one on a whole ``start``.
    """

    base: str
    family: str = "auto"
    guidance: float = 1.0
    guidance_kind: Literal["auto", "none", "cfg", "distilled"] = "auto"
    height: int = 0
    width: int = 0
    lora: Lora | None = None
    tokens: int = 0
    batch: int = 8
    vae_batch: int = 4
    vae_tiling: bool = False
    checkpointing: bool = False
    start: str = ""
    adapter: str = ""

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError("base must name a local folder in the diffusers layout, or a hub id")
        if self.family not in ("auto", *FAMILIES) and ":" not in self.family:
            known = ", ".join(("auto", *FAMILIES))
            raise ValueError(f'family must be {known}, or your own as module:Name, got "{self.family}"')
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.guidance_kind == "none" and self.guidance != 1:
            raise ValueError(f'guidance must be 1 where guidance_kind = "none", got {self.guidance}')
        for key in ("batch", "vae_batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("height", "width", "tokens"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")

    def from_file(self, file: str) -> "Diffusers":
        """The same model, starting from weights that a run of it saved."""
        whole = self.lora and self.start and not _is_adapter(FilePath(self.start))
        return replace(self, adapter=file) if whole else replace(self, start=file)

    @cached_property
    def _folder(self) -> Folder:
        return Folder(located(self.base, weights=False))

    @property
    def local(self) -> FilePath:
        """The folder on this machine."""
        return self._folder.path

    @cached_property
    def named_family(self) -> tuple[str, Family]:
        """The family's name and functions.

        Raises:
            ConfigError, CheckpointError: where the folder is missing or of no known family.
        """
        return find(self.family, self._folder)

    @cached_property
    def guided_by(self) -> Guidance:
        """How this model is guided.

        Raises:
            ConfigError: where it cannot be guided as the settings say.
        """
        name, family = self.named_family
        kinds = family.guidance(self._folder)
        if self.guidance_kind == "auto":
            return kinds[0] if kinds == ("distilled",) or self.guidance == 1 else "cfg"
        if self.guidance_kind not in kinds:
            raise ConfigError(
                f'model.guidance_kind = "{self.guidance_kind}": this {name} model takes {" or ".join(kinds)}. '
                'Leave it at "auto".'
            )
        return self.guidance_kind

    @property
    def calls(self) -> int:
        """Network calls a prediction."""
        return 2 if self.guided_by == "cfg" and self.guidance != 1 else 1

    @cached_property
    def path(self) -> Path:
        """The noising path, read from the scheduler's settings without opening weights.

        Raises:
            ConfigError, CheckpointError: where the settings are missing or beyond what a path can express.
        """
        _ = self.guided_by  # refused with the path, before weights are opened
        return self.named_family[1].path(self._folder, self.sample_shape)

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent, read without opening weights."""
        return self.named_family[1].latent_shape(self._folder, self.height, self.width)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of an image."""
        factor = self.named_family[1].factor(self._folder)
        return self.sample_shape[-2] * factor, self.sample_shape[-1] * factor

    @property
    def parametrisation(self) -> Parametrisation:
        """What the network's raw output means, read from the scheduler's settings."""
        return self.named_family[1].parametrisation(self._folder)

    def load(self, runtime: Runtime) -> "DiffusersPolicy":
        """Open the weights.

        Raises:
            MissingExtra: without diffusers and transformers, or peft for adapters.
            CheckpointError: where weights are missing, damaged, or of another architecture.
        """
        name, family = self.named_family
        folder = located(self.base, weights=not runtime.hollow)
        pipe = _open(folder, family, runtime.dtype, frozen=self.lora is not None, hollow=runtime.hollow)
        network = getattr(pipe, family.NETWORK)
        file = FilePath(self.adapter or self.start)
        adapter = bool(self.adapter or (self.start and _is_adapter(file)))
        if adapter and not self.lora:
            raise CheckpointError(f"{file}: an adapter, but no model.lora is set. Set it, with the adapter's rank.")
        if self.start and not (adapter and not self.adapter) and not runtime.hollow:
            whole, metadata = read_weights(FilePath(self.start))
            check_tensors(FilePath(self.start), whole, network.state_dict(), metadata, {"family": name})
            network.load_state_dict(whole)
        for key, parameter in network.named_parameters():
            if key.startswith(family.idle(network)):
                parameter.requires_grad_(False)  # no gradient would reach it
        stored, metadata = read_weights(file) if adapter and not runtime.hollow else ({}, {})
        if self.lora:
            with runtime.building():
                add_adapter(network, self.lora, family.TARGETS, idle=family.idle(network))
        runtime.place(pipe)
        trainable = {key: p for key, p in network.named_parameters() if p.requires_grad}
        if adapter and self.lora and not runtime.hollow:
            wanted = {_file_name(family, key): p for key, p in trainable.items()}
            check_tensors(file, stored, wanted, metadata, {"family": name})
            factor = _strength(metadata, family) * self.lora.rank / self.lora.alpha
            for key, p in wanted.items():
                p.data.copy_(stored[key].float() * (factor if ".lora_B." in key else 1))
        if self.checkpointing:
            network.enable_gradient_checkpointing()
        if self.vae_tiling:
            pipe.vae.enable_tiling()
        weights = WeightSets(network, trainable, adapters=self.lora is not None and not adapter)
        return DiffusersPolicy(self, pipe, weights, runtime)


def _open(folder: FilePath, family: Family, dtype: torch.dtype, *, frozen: bool, hollow: bool = False) -> Any:
    """The pipeline in eval mode, with gradients for its network alone.

    Text encoders and a frozen network are kept in the precision that computes; a trained network and the VAE in fp32.
    A hollow one is made from its settings; its networks are on the meta device.
    """
    try:
        import diffusers
        import transformers  # without it diffusers offers stand-ins that fail when used
    except ImportError as error:
        raise MissingExtra("A diffusers model", "diffusers") from error
    diffusers.logging.set_verbosity_error()  # it would print every caption that it cuts, in every iteration
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    dtypes = {"default": dtype, "vae": torch.float32, family.NETWORK: dtype if frozen else torch.float32}
    safe = None if hollow else check_parts(folder, family.WITHOUT)
    try:
        index = Folder(folder).settings("model_index.json") if hollow else {}
        made = parts(folder, {key: kind for key, kind in index.items() if key not in family.WITHOUT}, dtypes)
        pipe = getattr(diffusers, family.PIPELINE).from_pretrained(
            folder, dtype=dtypes, local_files_only=True, use_safetensors=safe, **family.WITHOUT, **made
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: diffusers cannot open it as a {family.PIPELINE}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(key == family.NETWORK)
    return pipe


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, count, size))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors; shorter ones are filled with zeros along dimension 1."""
    if parts[0].ndim < 3:
        return torch.cat(list(parts))
    most = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, 0, 0, most - part.shape[1])) for part in parts])


def _is_adapter(path: FilePath) -> bool:
    """Whether a weight file holds an adapter, by the names of its tensors.

    Raises:
        CheckpointError: where it is one under other programs' names.
    """
    names = read_names(path)
    if any(".lora_down." in key for key in names):
        raise CheckpointError(f"{path}: an adapter under kohya's names; name the run, or its export --for diffusers.")
    return any(".lora_A." in key for key in names)


def _file_name(family: Family, name: str) -> str:
    """What diffusers calls an adapter's tensor in a file."""
    return f"{family.NETWORK}.{name.replace('.default.', '.')}"


def _strength(metadata: Mapping[str, str], family: Family) -> float:
    """The alpha / rank of an adapter file: 1 unless its header, as diffusers writes it, says otherwise."""
    written = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    alpha, rank = (written.get(f"{family.NETWORK}.{key}", 1) for key in ("lora_alpha", "r"))
    return float(alpha / rank)


class DiffusersPolicy:
    """A diffusers pipeline behind the Policy protocol. Latents are scaled as the network sees them, in fp32."""

    def __init__(self, spec: Diffusers, pipe: Any, weights: WeightSets, runtime: Runtime) -> None:
        self.spec, self.pipe, self.weights, self.runtime = spec, pipe, weights, runtime
        self.name, self.family = spec.named_family
        self.path, self.kind, self.meter = spec.path, spec.parametrisation, Meter()
        self.guidance = spec.guidance if spec.guided_by == "cfg" else 1.0  # a distilled model's stays what it is told
        self.distilled = spec.guided_by == "distilled"
        self._shape = spec.sample_shape
        self._dtype = next(getattr(pipe, self.family.NETWORK).parameters()).dtype
        self._empty = self.encode([Prompt("")])

    def encode(self, prompts: Sequence[Prompt]) -> TextCondition:
        """Captions to embeddings of the frozen text encoders, ``batch`` at a time."""
        texts = [prompt.text for prompt in prompts]
        encoded = [
            self.family.encode(self.pipe, texts[rows], self.spec.tokens)
            for rows in _batches(len(texts), self.spec.batch)
        ]
        return TextCondition(tuple(map(_joined, zip(*encoded, strict=True))), torch.arange(len(texts)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the mean of their latents."""
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
            with self.runtime.autocast():
                made = self.pipe(
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

    def open_base(self, folder: FilePath | None = None, dtype: torch.dtype | None = None) -> Any:
        """A fresh stock pipeline: of the base, or of a folder made from it."""
        return _open(folder or self.spec.local, self.family, dtype or self._dtype, frozen=True)

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
                _file_name(self.family, name): p.detach() * (scale if ".lora_B." in name else 1)
                for name, p in self.weights.trainable.items()
            }
        return tensors, labels
