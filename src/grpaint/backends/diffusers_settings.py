"""The settings of a diffusers pipeline, and what follows from them before any weight is opened."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Literal, Self, TypeVar

from grpaint.backends.adapter_files import is_adapter
from grpaint.backends.adapters import Lora
from grpaint.backends.base_model import BaseModel, PredictionSetting, SpacingSetting, find_base
from grpaint.backends.embeddings import default_folder, text_parts_hash
from grpaint.backends.families import FAMILIES, Family, Guidance, PipelineFolder, find_family
from grpaint.backends.families.schedule import listed
from grpaint.backends.frozen import FrozenAdapter, check_frozen_names
from grpaint.backends.pipeline import text_encoders
from grpaint.backends.pipeline_files import pin_commit
from grpaint.backends.quantize import BasePrecision
from grpaint.core.bounds import MOST_SIDE, check_range
from grpaint.core.errors import ConfigError
from grpaint.core.importing import check_import
from grpaint.core.path import Path, VpPath
from grpaint.core.prediction import Parametrisation
from grpaint.storage.files import local_path

T = TypeVar("T")


def _read_from_folder(read: Callable[["DiffusersSettings"], T]) -> Callable[["DiffusersSettings"], T]:
    """Turn what a family raises at the folder's settings into an error that names the folder."""

    @functools.wraps(read)
    def guarded(settings: "DiffusersSettings") -> T:
        with settings.opening():
            return read(settings)

    return guarded


@dataclass(frozen=True)
class DiffusersSettings:
    """The settings of :class:`grpaint.backends.diffusers.Diffusers`.

    - ``base``: a local folder in the diffusers layout, a hub id (``owner/name`` or ``owner/name@revision``), or one
      ``.safetensors`` file. For a single file, ``config`` names the folder or hub id with its settings and tokenizers.
    - ``family``: "auto" chooses by the pipeline class, or by the single file's layout; "module:Name" is your own class.
    - ``prediction``: "auto" uses what the single file or the scheduler's settings state. ``zero_snr``: rescale the
      noise levels to zero terminal SNR, with trailing spacing, though neither of them states it. ``spacing``:
      "trailing" timesteps, or those on which latent consistency models are "distilled"; "auto" as the scheduler has.
    - ``guidance`` w: with ``guidance_kind`` "cfg", extrapolate from the empty caption (1 is no guidance; any other
      value needs two network calls per prediction). "distilled" models take w as an input and need one call. "auto"
      uses what the model supports.
    - ``height``, ``width``: in pixels; 0 is the model's own size. ``tokens``: how many of a caption are read; 0 is as
      many as the stock pipeline reads. SD and SDXL read more than 75 tokens in windows of 75.
    - ``clip_skip``: last layers of SD's and SDXL's text encoders that are left out, as diffusers counts them: A1111's
      "clip skip 2" is 1 on SD, and 0 on SDXL, which always leaves out one.
    - ``sigmas``: noise levels of the steps in place of the scheduler's, like the argument ``sigmas`` of stock pipelines
      without a last 0. ``plan.steps`` and ``evaluate.steps`` are then their number.
    - ``batch``: rows per network call; ``vae_batch``: images per VAE call; ``vae_tiling``: decode in tiles.
      ``checkpointing``: recompute activations in the backward pass instead of storing them.
    - ``base_precision``: precision of the frozen network's linear layers under an adapter; see ``quantizer``.
    - ``embeddings`` "cache": store every caption's embedding in a file of the folder ``cache`` (empty: the user's cache
      folder); the text encoders are in memory only while captions without such a file are encoded.
    - ``start``: a ``.safetensors`` file or checkpoint folder of an earlier run, a whole network or an adapter; or
      another program's LoRA (peft's or diffusers' folder, or a file). An adapter is trained further, and the reference
      is the base with that adapter. ``adapter``: an adapter for a ``start`` that is a whole network.
    - ``frozen``: further adapters, which apply under what is trained and never change.
    """

    base: str
    config: str = ""
    family: str = "auto"
    prediction: PredictionSetting = "auto"
    zero_snr: bool = False
    spacing: SpacingSetting = "auto"
    guidance: float = 1.0
    guidance_kind: Literal["auto", "none", "cfg", "distilled"] = "auto"
    height: int = 0
    width: int = 0
    lora: Lora | None = None
    tokens: int = 0
    clip_skip: int = 0
    sigmas: tuple[float, ...] = ()
    batch: int = 8
    vae_batch: int = 4
    vae_tiling: bool = False
    checkpointing: bool = False
    base_precision: BasePrecision = "full"
    embeddings: Literal["encode", "cache"] = "encode"
    cache: str = ""
    start: str = ""
    adapter: str = ""
    frozen: tuple[FrozenAdapter, ...] = ()

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError("base must name a folder in the diffusers layout, a hub id or a .safetensors file")
        if self.family not in ("auto", *FAMILIES) and ":" not in self.family:
            names = ", ".join(("auto", *FAMILIES))
            raise ValueError(f'family must be {names}, or your own as module:Name, got "{self.family}"')
        if ":" in self.family:
            check_import(self.family, "model.family")  # imported when first used, where the origin is not known
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.guidance_kind == "none" and self.guidance != 1:
            raise ValueError(f'guidance must be 1 with guidance_kind = "none", got {self.guidance}')
        if self.base_precision != "full" and not self.lora:
            raise ValueError(
                f'base_precision = "{self.base_precision}" is for a frozen base: set model.lora, or leave it "full"'
            )
        if self.cache and self.embeddings != "cache":
            raise ValueError(f'cache = "{self.cache}" goes with embeddings = "cache"; set both or neither')
        for key in ("batch", "vae_batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        check_frozen_names(self.frozen)
        check_range(self, 0, MOST_SIDE, "height", "width", "tokens", "clip_skip")

    def opening(self) -> AbstractContextManager[None]:
        """Within the block, what a library raises at the folder's files is an error of the folder.

        With a family of the user's own it goes through, since it may be the family's.
        """
        name, family = self.named_family
        return self._folder.opening(f"a {family.PIPELINE}") if name in FAMILIES else nullcontext()

    def from_file(self, file: str) -> Self:
        """The same model, starting from weights that a run of it saved."""
        starts_whole = self.lora and self.start and not is_adapter(FilePath(self.start))
        return replace(self, adapter=file) if starts_whole else replace(self, start=file)

    def pinned(self) -> Self:
        """The same model, with each hub id extended by the commit that it refers to now."""
        return replace(self, base=pin_commit(self.base), config=pin_commit(self.config, "model.config"))

    @cached_property
    def origin(self) -> BaseModel:
        """The folder and the single file that the parts come from, found without opening weights."""
        return find_base(self.base, self.config, self.prediction, zero_snr=self.zero_snr, spacing=self.spacing)

    @property
    def _folder(self) -> PipelineFolder:
        return self.origin.settings

    @property
    def local_folder(self) -> FilePath:
        """The pipeline's folder on this machine."""
        return self._folder.path

    @property
    def about(self) -> str:
        """One line: what the model is, the files it is read from, and what it predicts."""
        frozen = "".join(
            f"; frozen {adapter.name} x {adapter.weight:g}{'' if adapter.training else ', off in training'}"
            for adapter in self.frozen
        )
        return f"{self.origin.about(self.named_family[0])}, predicts {self.parametrisation}{frozen}"

    @cached_property
    def named_family(self) -> tuple[str, Family]:
        """The family's name and the family.

        Raises:
            ConfigError, CheckpointError: if the folder is missing, or no family supports the pipeline.
        """
        return self.origin.family(*find_family(self.family, self._folder))

    @cached_property
    @_read_from_folder
    def guided_by(self) -> Guidance:
        """The kind of guidance in use, with "auto" resolved.

        Raises:
            ConfigError: if the model does not support ``guidance_kind``.
        """
        name, family = self.named_family
        kinds = family.guidance(self._folder)
        if self.guidance_kind not in ("auto", *kinds):
            raise ConfigError(
                f'model.guidance_kind = "{self.guidance_kind}": this {name} model supports {" or ".join(kinds)}. '
                'Leave it at "auto".'
            )
        if kinds == ("none",) and self.guidance != 1:
            raise ConfigError(
                f"model.guidance = {self.guidance:g}: this {name} model is distilled to need no guidance. Set it to 1."
            )
        if self.guidance_kind != "auto":
            return self.guidance_kind
        return kinds[0] if kinds == ("distilled",) or self.guidance == 1 else "cfg"

    @property
    def calls(self) -> int:
        """Network calls per prediction."""
        return 2 if self.guided_by == "cfg" and self.guidance != 1 else 1

    @cached_property
    @_read_from_folder
    def path(self) -> Path:
        """The noising path, read from the scheduler's settings without opening weights.

        Raises:
            ConfigError, CheckpointError: if the settings are missing, or no path can express them.
        """
        _ = self.guided_by  # raises here too, before weights are opened
        most = self.named_family[1].MOST_TOKENS
        if most and self.tokens > most:
            raise ConfigError(f"model.tokens = {self.tokens}: this model's pipeline reads {most} at most.")
        if self.tokens and self.named_family[1].FIXED_TOKENS:
            raise ConfigError(
                f"model.tokens = {self.tokens}: this model's pipeline has no such argument. Leave it out."
            )
        if self.clip_skip:
            self._check_clip_skip()
        path = self.named_family[1].path(self._folder, self.sample_shape)
        return listed(path, self.sigmas) if self.sigmas else path

    def _check_clip_skip(self) -> None:
        name, family = self.named_family
        if not family.SKIPS_CLIP:
            raise ConfigError(f"model.clip_skip = {self.clip_skip}: only for Stable Diffusion and SDXL, not {name}.")
        layers = min(
            self._folder.settings(f"{part}/config.json")["num_hidden_layers"] for part in text_encoders(self.origin)
        )
        if self.clip_skip >= layers:
            raise ConfigError(f"model.clip_skip = {self.clip_skip}: this model's text encoders have {layers} layers.")

    @property
    def clip_arguments(self) -> dict[str, int]:
        """The argument with which the stock pipeline skips as many layers."""
        return {"clip_skip": self.clip_skip} if self.clip_skip else {}

    @property
    def stock_arguments(self) -> dict[str, Any]:
        """Arguments with which the stock pipeline reads as much of a caption and takes the same steps."""
        end = [0.0] if isinstance(self.path, VpPath) else []  # which Euler's scheduler expects
        sigmas = {"sigmas": [*self.sigmas, *end]} if self.sigmas else {}
        return self.named_family[1].length(self.tokens) | self.clip_arguments | sigmas

    @cached_property
    @_read_from_folder
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent, read without opening weights."""
        return self.named_family[1].latent_shape(self._folder, self.height, self.width)

    @property
    @_read_from_folder
    def pixels(self) -> tuple[int, int]:
        """Height and width of an image."""
        factor = self.named_family[1].factor(self._folder)
        return self.sample_shape[-2] * factor, self.sample_shape[-1] * factor

    @property
    @_read_from_folder
    def side_multiple(self) -> int:
        """The number of pixels by which both sides of an image must be divisible."""
        family = self.named_family[1]
        return family.factor(self._folder) * family.PATCH

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError if the model cannot encode images of this size."""
        if width % self.side_multiple or height % self.side_multiple:
            raise ValueError(
                f"data: images of {width} x {height} pixels; this model needs sides divisible by {self.side_multiple}. "
                "Set data.resolution and data.bucket_step to such numbers, or crop the images to such sides"
            )

    @cached_property
    def text_parts_hash(self) -> str:
        """A hash of the pipeline's text encoders and tokenizers."""
        return text_parts_hash(self.origin)

    @property
    def cache_folder(self) -> FilePath:
        """The folder of the cached embeddings."""
        return local_path(self.cache) if self.cache else default_folder()

    @property
    @_read_from_folder
    def parametrisation(self) -> Parametrisation:
        """What the network's raw output means, read from the scheduler's settings."""
        return self.named_family[1].parametrisation(self._folder)
