"""Feature extractors for distances between sets of images: features ``[b, d]``, and a card that identifies them."""

import functools
import importlib.metadata
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.images.encoding import eight_bit
from grpaint.scenes.scorer import SHIPPED, WIDTH, shipped_scorer
from grpaint.scenes.shapes import SIDE
from grpaint.storage.files import digest, local_path
from grpaint.vision.clip import ClipImages, load_clip_network
from grpaint.vision.sources import read_config


class Features(Protocol):
    """A feature extractor; ``width`` and ``card`` are available before any weights are opened."""

    @property
    def width(self) -> int:
        """The number of features of an image."""

    def card(self) -> dict[str, Any]:
        """Name, version, weight hash, resize filter and input size."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], /) -> Float[Tensor, "b d"]:
        """Features of images in [0, 1], in fp32 on the CPU."""


@functools.cache
def file_hash(file: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return digest(file)[:16]


@dataclass(frozen=True)
class ScenesFeatures:
    """The embedding of the embedded world's scorer, 192 numbers: a stand-in for Inception and CLIP on drawings.

    It is not scaled to length 1. A distance between these features is comparable with no published FID.
    """

    @property
    def width(self) -> int:
        return WIDTH

    def card(self) -> dict[str, Any]:
        return {
            "name": "scenes-scorer features",
            "version": importlib.metadata.version("grpaint"),
            "weights": file_hash(SHIPPED),
            "resize": "none",
            "input": f"{SIDE}x{SIDE}",
            "width": self.width,
        }

    def __call__(self, images: Tensor, /) -> Tensor:
        if images.shape[-2:] != (SIDE, SIDE):
            raise ValueError(f"scenes-scorer features read {SIDE} x {SIDE} drawings, got {tuple(images.shape[-2:])}")
        with torch.no_grad():
            return shipped_scorer().image(images.detach().float().cpu())


@dataclass(frozen=True)
class ClipFeatures:
    """The projected image embedding of a CLIP model (as CLIP-FID, Kynkaanniemi et al. 2023), not scaled to length 1.

    ``path``: a folder that ``save_pretrained`` of transformers wrote. Images are prepared as for the CLIP rewards:
    rounded to 8 bits, the shortest side resized to the network's input (bicubic, antialiased, by Pillow), the middle
    cut out, and normalised by CLIP's mean and std.
    """

    path: str

    def _file(self, name: str) -> Path:
        file = local_path(self.path) / name
        if not file.is_file():
            raise ConfigError(
                f'features.path = "{self.path}": {name} not found; name the folder of a CLIP model (transformers, '
                "config.json and model.safetensors)."
            )
        return file

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        return read_config(self._file("config.json"))

    @property
    def width(self) -> int:
        return int(self._settings.get("projection_dim", 512))

    @property
    def side(self) -> int:
        """The side of the network's input in pixels."""
        return int(self._settings.get("vision_config", {}).get("image_size", 224))

    def card(self) -> dict[str, Any]:
        return {
            "name": f"CLIP image features, {Path(self.path).name}",
            "version": f"transformers {importlib.metadata.version('transformers')}",
            "weights": file_hash(self._file("model.safetensors")),
            "resize": "8 bits, bicubic by Pillow, shortest side, centre crop",
            "input": f"{self.side}x{self.side}",
            "width": self.width,
        }

    @functools.cached_property
    def _clip(self) -> ClipImages:
        if not find_spec("transformers"):
            raise MissingExtra('features.kind = "clip"', "diffusers")
        self._file("config.json")
        return ClipImages(load_clip_network(self._file("model.safetensors"), "cpu", "fp32"))

    def __call__(self, images: Tensor, /) -> Tensor:
        with torch.no_grad():
            return self._clip.image_embedding(images.detach().cpu())


@dataclass(frozen=True)
class InceptionFeatures:
    """The 2048 pool features of the Inception network that published FID is computed on, through torch-fidelity.

    ``path``: its weight file ``weights-inception-2015-12-05-6726825d.pth``; nothing is downloaded. torch-fidelity needs
    torchvision, and is imported in this class alone. Images are rounded to 8 bits, as in image files.
    """

    path: str

    width = 2048

    def card(self) -> dict[str, Any]:
        if not local_path(self.path).is_file():
            raise ConfigError(
                f'features.path = "{self.path}": no such file; name Inception\'s weights-inception-*.pth.'
            )
        try:
            version = importlib.metadata.version("torch-fidelity")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra('features.kind = "inception"', "inception") from error
        return {
            "name": "Inception v3 pool features",
            "version": f"torch-fidelity {version}",
            "weights": file_hash(local_path(self.path)),
            "resize": "bilinear as TensorFlow 1",
            "input": "299x299",
            "width": self.width,
        }

    @functools.cached_property
    def _model(self) -> Any:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingExtra('features.kind = "inception"', "inception") from error
        file = str(local_path(self.path))
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=file).eval()

    def __call__(self, images: Tensor, /) -> Tensor:
        pixels = eight_bit(images.detach().cpu())
        with torch.no_grad():
            return self._model(pixels)[0].float()
