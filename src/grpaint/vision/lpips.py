"""The network of LPIPS 0.1, a learned perceptual distance of two images (Zhang et al. 2018), on AlexNet."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import DTYPES, NetworkPrecision
from grpaint.storage.files import read_torch

CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # number in the file, stride, padding
POOLED = (3, 6)  # the convolutions that are preceded by max pooling
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # normalisation of colours in [-1, 1]
MIN_SIDE = 32  # pixels; smaller images leave nothing for the fifth feature map


class Lpips:
    """Five convolutions of AlexNet, and for each a head that weights its channels."""

    def __init__(self, alexnet: Mapping[str, Tensor], heads: Mapping[str, Tensor], files: Sequence[Path]) -> None:
        self.layers, self.heads = _convolutions(alexnet, files[0]), _heads(heads, files[1])
        widths = [weight.shape[0] for weight, _ in self.layers]
        if widths != [head.shape[1] for head in self.heads]:
            raise CheckpointError(
                f"{files[1]}: its heads are those of another network; this one's feature maps have {widths} channels."
            )

    def to(self, device: str, dtype: torch.dtype) -> "Lpips":
        """Move the network to a device and a dtype."""
        self.layers = [(weight.to(device, dtype), bias.to(device, dtype)) for weight, bias in self.layers]
        self.heads = [head.to(device, dtype) for head in self.heads]
        return self

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The feature map ``[b, width, h, w]`` of each convolution, scaled to length 1 at every position."""
        weight = self.layers[0][0]
        shift, scale = (torch.tensor(values, device=weight.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = ((images.to(weight.device).float() * 2 - 1 - shift) / scale).to(weight.dtype)
        maps = []
        for (number, stride, padding), (weight, bias) in zip(CONVOLUTIONS, self.layers, strict=True):
            x = F.max_pool2d(x, 3, 2) if number in POOLED else x
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            wide = x.float()  # in fp16 squares overflow and 1e-10 is 0
            maps.append((wide / (wide.square().sum(1, keepdim=True).sqrt() + 1e-10)).to(x.dtype))
        return maps

    def distance(self, images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of images in [0, 1] to ``others``, pair by pair: 0 if they are equal, seldom above 1.

        Raises:
            ValueError: if their sizes differ, or are too small for five feature maps.
        """
        if images.shape != others.shape:
            raise ValueError(f"images of {tuple(images.shape[2:])} and references of {tuple(others.shape[2:])} pixels")
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(f"LPIPS needs images of {MIN_SIDE} pixels or more, got {tuple(images.shape[2:])}")
        pairs = zip(self.maps(images), self.maps(others), self.heads, strict=True)
        parts = [F.conv2d((a - b).square(), head).float().mean((1, 2, 3)) for a, b, head in pairs]
        return torch.stack(parts).sum(0)


def _convolutions(stored: Mapping[str, Tensor], file: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution in torchvision's AlexNet file; its classifier is not used."""
    names = {f"features.{number}.{part}" for number, _, _ in CONVOLUTIONS for part in ("weight", "bias")}
    stored_names = {name for name in stored if not name.startswith("classifier.")}
    if stored_names != names:
        raise CheckpointError(f"{file}: not torchvision's AlexNet; for example {sorted(stored_names ^ names)[0]}.")
    return [(stored[f"features.{n}.weight"].float(), stored[f"features.{n}.bias"].float()) for n, _, _ in CONVOLUTIONS]


def _heads(stored: Mapping[str, Tensor], file: Path) -> list[Tensor]:
    """The channel weights ``[1, width, 1, 1]`` of each feature map."""
    names = [f"lin{number}.model.1.weight" for number in range(5)]
    if sorted(stored) != names:
        raise CheckpointError(f"{file}: not LPIPS's heads; for example {sorted(stored.keys() ^ set(names))[0]}.")
    return [stored[name].float() for name in names]


@functools.cache
def load_lpips(alexnet: Path, heads: Path, device: str, precision: NetworkPrecision) -> Lpips:
    """Open the network from its two published files, once for each device and precision.

    Raises:
        CheckpointError: if a file is damaged or of another architecture.
    """
    return Lpips(read_torch(alexnet), read_torch(heads), (alexnet, heads)).to(device, DTYPES[precision])
