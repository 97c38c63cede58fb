"""Pipeline families: what differs between diffusers pipelines, a few short functions a file.

A family is a module that follows :class:`Family`. To add one, write the file and a line of :data:`FAMILIES`. Everything
that a family says about a model before its weights are opened, it reads from the folder's JSON files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any, Protocol, cast

from torch import Tensor

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.path import Path
from grpaint.core.prediction import Parametrisation

FAMILIES = {"sd15": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline"}  # name: class in model_index.json
OFF = (False, None)


class Family(Protocol):
    """What the backend asks of a family's module; ``pipe`` is the opened diffusers pipeline."""

    NETWORK: str  # the pipeline's part that is trained
    TARGETS: tuple[str, ...]  # endings of the linear layers that take adapters
    WITHOUT: dict[str, Any]  # parts that the pipeline is opened without

    def path(self, folder: "Folder") -> Path:
        """The noising path that the scheduler's settings describe; ConfigError where no path can express them."""

    def parametrisation(self, folder: "Folder") -> Parametrisation:
        """What the network's raw output means."""

    def latent_shape(self, folder: "Folder", height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for an image of ``height`` x ``width`` pixels; 0 stands for the model's own size."""

    def encode(self, pipe: Any, texts: list[str]) -> tuple[Tensor, ...]:
        """What the network is told about captions: tensors with one row each."""

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The network's raw output at path times ``t`` ``[b]``."""

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Images in about [-1, 1]."""

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]."""


@dataclass(frozen=True)
class Folder:
    """A local diffusers folder, read as JSON."""

    path: FilePath

    def settings(self, file: str) -> dict[str, Any]:
        """The contents of one of its JSON files.

        Raises:
            ConfigError: where the folder is not there.
            CheckpointError: where the file is missing or damaged.
        """
        if not self.path.is_dir():
            raise ConfigError(
                f'model.folder = "{self.path}": no such folder. Models are opened from local folders in the diffusers '
                "layout: hf download NAME --local-dir FOLDER."
            )
        where = self.path / file
        try:
            values = json.loads(where.read_text())
        except FileNotFoundError as error:
            raise CheckpointError(f"{where}: not found. Is {self.path} a folder in the diffusers layout?") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{where}: not a readable JSON file ({error}). Copy it again.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: settings must be a JSON object, not {type(values).__name__}.")
        return values

    def scheduler(
        self, known: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, Sequence[object]]
    ) -> dict[str, Any]:
        """The scheduler's settings; ``known`` gives the class defaults of keys that the file may leave out.

        Raises:
            ConfigError: where the class is not in ``known``, or a setting's value not in ``allowed``.
        """
        file = "scheduler/scheduler_config.json"
        settings = self.settings(file)
        name = str(settings.get("_class_name"))
        if name not in known:
            raise ConfigError(
                f'{self.path / file}: _class_name = "{name}": its noise schedule is not read. There are: '
                f"{', '.join(known)}. Save the folder's schedule with one of these."
            )
        settings = {**known[name], **settings}
        for key, values in allowed.items():
            if key in settings and settings[key] not in values:
                raise ConfigError(
                    f"{self.path / file}: {key} = {json.dumps(settings[key])}: no sampler here can follow that. "
                    f"Set it to {' or '.join(json.dumps(value) for value in values)}, if the model allows it."
                )
        return settings


def find(name: str, folder: Folder) -> tuple[str, Family]:
    """A family's name and module; "auto" goes by the pipeline class in ``model_index.json``.

    Raises:
        ConfigError: where no family knows the pipeline.
    """
    if name == "auto":
        kind = folder.settings("model_index.json").get("_class_name")
        name = next((family for family, pipeline in FAMILIES.items() if pipeline == kind), "")
        if not name:
            raise ConfigError(
                f'model.folder = "{folder.path}": no family reads a pipeline of class "{kind}". There are: '
                f"{', '.join(f'{family} ({pipeline})' for family, pipeline in FAMILIES.items())}."
            )
    return name, cast(Family, import_module(f"{__name__}.{name}"))


def latent_sides(folder: Folder, height: int, width: int, own: int, patch: int = 1) -> tuple[int, int]:
    """Pixels to latent sides, by the folder's ``AutoencoderKL``; ``own`` is the network's latent size.

    Raises:
        ConfigError: where a side is no whole number of latents and patches.
    """
    factor = 2 ** (len(folder.settings("vae/config.json")["block_out_channels"]) - 1)
    for key, pixels in (("height", height), ("width", width)):
        if pixels % (factor * patch):
            raise ConfigError(f"model.{key} = {pixels}: this model's images have sides divisible by {factor * patch}.")
    return height // factor or own, width // factor or own


def vae_decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents to images with an ``AutoencoderKL``."""
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return vae.decode(scaled, return_dict=False)[0]


def vae_encode(vae: Any, images: Tensor) -> Tensor:
    """Images to the mean of their latents with an ``AutoencoderKL``: no randomness."""
    mean = vae.encode(images).latent_dist.mode()
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
