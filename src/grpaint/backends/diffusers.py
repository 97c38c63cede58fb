"""Any supported diffusers pipeline, trained whole or through LoRA.

The house samples; the pipeline lends its text encoders, its network and its VAE. What differs between pipelines is in
:mod:`grpaint.backends.families`; casting, guidance and batching are in :mod:`grpaint.backends.diffusers_policy`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Literal

from grpaint.backends.adapters import Lora, add_adapter
from grpaint.backends.base_model import BaseModel, Wanted, find_base
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.backends.embeddings import default_folder, readers_hash
from grpaint.backends.families import FAMILIES, Family, Folder, Guidance, find
from grpaint.backends.pipeline import is_adapter, open_pipeline, take_adapter, take_whole, text_encoders
from grpaint.backends.pipeline_files import pinned
from grpaint.backends.quantize import BasePrecision, quantizer
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.path import Path
from grpaint.core.prediction import Parametrisation
from grpaint.core.runtime import Runtime

__all__ = ["Diffusers", "DiffusersPolicy"]


@dataclass(frozen=True)
class Diffusers:
    """Any supported pipeline of diffusers, from a folder, a hub or one file: ``[model] kind = "diffusers"``.

    - ``base``: a local folder in the diffusers layout, a hub id (``owner/name`` or ``owner/name@revision``), or one
      ``.safetensors`` file; then ``config`` names a folder or hub id with the settings and tokenizers that go with it.
      ``family`` "auto" goes by the pipeline class, or the file's own layout; "module:Name" is one of your own.
    - ``prediction``: "auto" takes what the file or the scheduler's settings say.
    - ``guidance`` w: with ``guidance_kind`` "cfg" it extrapolates from the empty caption (1 is none; else two network
      calls a prediction); "distilled" models are told it and called once; "auto" takes what the model can do.
    - ``height``, ``width``: pixels, 0 for the model's own. ``tokens``: of a caption that are read, 0 for as many as the
      stock pipeline reads; SD and SDXL read more than 75 in windows of 75.
    - ``batch``: rows of one network call; ``vae_batch``: images of one VAE call, ``vae_tiling`` a tile of them at a
      time. ``checkpointing`` computes activations a second time in the backward instead of keeping them.
    - ``base_precision``: under an adapter, what a frozen network's linear layers are held in; see ``quantizer``.
    - ``embeddings`` "cache": every caption's embedding is kept in a file of ``cache`` (the user's cache folder where
      that is empty), and the text encoders are in memory only while a caption is met that has none.
    - ``start``: a ``.safetensors`` file or checkpoint folder made by an earlier run, a whole network or an adapter; an
      adapter goes on being trained, and the reference is the model that it made. ``adapter``: one on a whole ``start``.
    """

    base: str
    config: str = ""
    family: str = "auto"
    prediction: Wanted = "auto"
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
    base_precision: BasePrecision = "full"
    embeddings: Literal["encode", "cache"] = "encode"
    cache: str = ""
    start: str = ""
    adapter: str = ""

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError("base must name a folder in the diffusers layout, a hub id or a .safetensors file")
        if self.family not in ("auto", *FAMILIES) and ":" not in self.family:
            known = ", ".join(("auto", *FAMILIES))
            raise ValueError(f'family must be {known}, or your own as module:Name, got "{self.family}"')
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.guidance_kind == "none" and self.guidance != 1:
            raise ValueError(f'guidance must be 1 where guidance_kind = "none", got {self.guidance}')
        if self.base_precision != "full" and not self.lora:
            raise ValueError(
                f'base_precision = "{self.base_precision}" is for a frozen base: set model.lora, or leave it "full"'
            )
        if self.cache and self.embeddings != "cache":
            raise ValueError(f'cache = "{self.cache}" goes with embeddings = "cache"; set both or neither')
        for key in ("batch", "vae_batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("height", "width", "tokens"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")

    def from_file(self, file: str) -> "Diffusers":
        """The same model, starting from weights that a run of it saved."""
        whole = self.lora and self.start and not is_adapter(FilePath(self.start))
        return replace(self, adapter=file) if whole else replace(self, start=file)

    def pinned(self) -> "Diffusers":
        """The same model, with hub ids that name the commit that they mean now."""
        return replace(self, base=pinned(self.base), config=pinned(self.config, "model.config"))

    @cached_property
    def origin(self) -> BaseModel:
        """Where its parts come from, found without opening weights."""
        return find_base(self.base, self.config, self.prediction)

    @property
    def _folder(self) -> Folder:
        return self.origin.settings

    @property
    def local(self) -> FilePath:
        """The folder on this machine."""
        return self._folder.path

    @property
    def about(self) -> str:
        """What the model is and where that was read."""
        return f"{self.origin.about(self.named_family[0])}, predicts {self.parametrisation}"

    @cached_property
    def named_family(self) -> tuple[str, Family]:
        """The family's name and functions.

        Raises:
            ConfigError, CheckpointError: where the folder is missing or of no known family.
        """
        return self.origin.family(*find(self.family, self._folder))

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
        most = self.named_family[1].MOST_TOKENS
        if most and self.tokens > most:
            raise ConfigError(f"model.tokens = {self.tokens}: this model's pipeline reads {most} at most.")
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
    def whole(self) -> int:
        """Pixels that the sides of an image must be a multiple of."""
        family = self.named_family[1]
        return family.factor(self._folder) * family.PATCH

    @cached_property
    def readers(self) -> str:
        """A hash of all that reads captions."""
        return readers_hash(self.origin)

    @property
    def cache_folder(self) -> FilePath:
        """Where embeddings are kept."""
        return FilePath(self.cache).expanduser() if self.cache else default_folder()

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
        quantize = quantizer(self.base_precision, runtime)
        without = text_encoders(self.origin) if self.embeddings == "cache" else ()
        pipe = open_pipeline(self.origin, family, runtime, frozen=self.lora is not None, without=without)
        network = getattr(pipe, family.NETWORK)
        adapter = self._adapter()
        if self.start and adapter != FilePath(self.start) and not runtime.hollow:
            take_whole(FilePath(self.start), network, name)
        quantize(network)
        for key, parameter in network.named_parameters():
            if key.startswith(family.idle(network)):
                parameter.requires_grad_(False)  # no gradient would reach it
        if self.lora:
            with runtime.building():
                add_adapter(network, self.lora, family.TARGETS, idle=family.idle(network))
        runtime.place(pipe)
        trainable = {key: p for key, p in network.named_parameters() if p.requires_grad}
        if adapter and self.lora and not runtime.hollow:
            take_adapter(adapter, self.lora, trainable, (name, family))
        if self.checkpointing:
            network.enable_gradient_checkpointing()
        if self.vae_tiling:
            pipe.vae.enable_tiling()
        weights = WeightSets(network, trainable, adapters=self.lora is not None and not adapter)
        return DiffusersPolicy(self, pipe, weights, runtime)

    def _adapter(self) -> FilePath | None:
        """The adapter file to go on from."""
        file = FilePath(self.adapter or self.start)
        if not (self.adapter or self.start) or not (is_adapter(file) or self.adapter):
            return None
        if not self.lora:
            raise CheckpointError(f"{file}: an adapter, but no model.lora is set. Set it, with the adapter's rank.")
        return file
