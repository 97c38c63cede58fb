"""LPIPS: the learned perceptual distance of two images (Zhang et al. 2018), on AlexNet, version 0.1."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import DTYPES, ModelReward, Precision
from grpaint.rewards.references import references
from grpaint.rewards.self_test_images import noise, sunset
from grpaint.storage.files import read_torch

CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # number in the file, stride, padding
POOLED = (3, 6)  # those before which the map is pooled
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in [-1, 1]
LEAST = 32  # pixels of a side; of smaller images nothing is left for the fifth map


class Lpips:
    """The network: five convolutions, a weight for each of their channels. Holds its tensors, has no other state."""

    def __init__(self, alexnet: Mapping[str, Tensor], heads: Mapping[str, Tensor], files: Sequence[Path]) -> None:
        self.layers, self.heads = _convolutions(alexnet, files[0]), _heads(heads, files[1])
        widths = [weight.shape[0] for weight, _ in self.layers]
        if widths != [head.shape[1] for head in self.heads]:
            raise CheckpointError(f"{files[1]}: heads of another network: it was made for maps of other than {widths}.")

    def to(self, device: str, dtype: torch.dtype) -> "Lpips":
        """Move it."""
        self.layers = [(weight.to(device, dtype), bias.to(device, dtype)) for weight, bias in self.layers]
        self.heads = [head.to(device, dtype) for head in self.heads]
        return self

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """What each convolution sees, the features of every place scaled to length 1."""
        weight = self.layers[0][0]
        shift, scale = (torch.tensor(values, device=weight.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = ((images.to(weight.device).float() * 2 - 1 - shift) / scale).to(weight.dtype)
        seen = []
        for (number, stride, padding), (weight, bias) in zip(CONVOLUTIONS, self.layers, strict=True):
            x = F.max_pool2d(x, 3, 2) if number in POOLED else x
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            wide = x.float()  # in fp16 squares overflow, and 1e-10 is 0
            seen.append((wide / (wide.square().sum(1, keepdim=True).sqrt() + 1e-10)).to(x.dtype))
        return seen

    def distance(self, images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """0 for equal images in [0, 1], seldom above 1.

        Raises:
            ValueError: where their sizes differ, or are too small for five maps.
        """
        if images.shape != others.shape:
            raise ValueError(f"images of {tuple(images.shape[2:])} and references of {tuple(others.shape[2:])} pixels")
        if min(images.shape[2:]) < LEAST:
            raise ValueError(f"LPIPS needs images of {LEAST} pixels or more, got {tuple(images.shape[2:])}")
        pairs = zip(self.maps(images), self.maps(others), self.heads, strict=True)
        parts = [F.conv2d((a - b).square(), head).float().mean((1, 2, 3)) for a, b, head in pairs]
        return torch.stack(parts).sum(0)


def _convolutions(stored: Mapping[str, Tensor], file: Path) -> list[tuple[Tensor, Tensor]]:
    """The convolutions of torchvision's AlexNet file; its classifier is not used."""
    wanted = {f"features.{number}.{part}" for number, _, _ in CONVOLUTIONS for part in ("weight", "bias")}
    found = {name for name in stored if not name.startswith("classifier.")}
    if found != wanted:
        raise CheckpointError(f"{file}: not torchvision's AlexNet; for example {sorted(found ^ wanted)[0]}.")
    return [(stored[f"features.{n}.weight"].float(), stored[f"features.{n}.bias"].float()) for n, _, _ in CONVOLUTIONS]


def _heads(stored: Mapping[str, Tensor], file: Path) -> list[Tensor]:
    """The weights of the channels, ``[1, width, 1, 1]`` for each map."""
    wanted = [f"lin{number}.model.1.weight" for number in range(5)]
    if sorted(stored) != wanted:
        raise CheckpointError(f"{file}: not LPIPS's heads; for example {sorted(stored.keys() ^ set(wanted))[0]}.")
    return [stored[name].float() for name in wanted]


@functools.cache
def load_lpips(alexnet: Path, heads: Path, device: str, precision: Precision) -> Lpips:
    """The network from its two published files; opened once for each device and precision.

    Raises:
        CheckpointError: where a file is damaged or of another architecture.
    """
    return Lpips(read_torch(alexnet), read_torch(heads), (alexnet, heads)).to(device, DTYPES[precision])


@dataclass(frozen=True, kw_only=True)
class LpipsToReference(ModelReward):
    """Minus the LPIPS distance to the prompt's reference image; at most 0, which is the reference itself.

    ``weights`` is torchvision's AlexNet, ``heads`` the published weights of LPIPS 0.1 for it.
    """

    needs_reference = True
    needs_caption = False

    weights: str = "alexnet-owt-7be5be79.pth"
    heads: str = "alex.pth"

    @property
    def best(self) -> float:
        return 0.0

    def sources(self) -> tuple[WeightSource, ...]:
        alexnet, heads = "alexnet-owt-7be5be79.pth", "alex.pth"
        return (
            WeightSource("weights", self.weights, (alexnet,), f"https://download.pytorch.org/models/{alexnet}"),
            WeightSource(
                "heads",
                self.heads,
                (heads,),
                f"https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/{heads}",
            ),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        network = load_lpips(*self.files(), str(images.device), self.precision)
        return -network.distance(images, references(prompts).to(images.device))

    def pair(self) -> Pair:
        picture = sunset(LEAST)
        return Pair(picture, noise(LEAST), Prompt("", reference=picture), -5, 0)
