"""Base classes of rewards with a network: device, precision and batch size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpaint.core.errors import MissingExtra
from grpaint.core.policy import Prompt
from grpaint.core.reward import RewardBase
from grpaint.core.runtime import Device, NetworkPrecision
from grpaint.vision.sources import weight_file


@dataclass(frozen=True, kw_only=True)
class ModelReward(RewardBase):
    """A reward with a network, which is opened at the first image and shared by all rewards that name the same files.

    ``device``: "auto" is the device of the images. ``precision`` is that of the network; scores are fp32. ``batch`` is
    the number of images scored at once.
    """

    device: Device = "auto"
    precision: NetworkPrecision = "fp32"
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        """Scores ``[b]`` of at most ``batch`` images, which are on the device already."""
        raise NotImplementedError

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        device = images.device if self.device == "auto" else torch.device(self.device)
        parts = [
            self.score(part.to(device), prompts[first : first + self.batch]).float().cpu()
            for first, part in zip(range(0, len(images), self.batch), images.split(self.batch), strict=True)
        ]
        return torch.cat(parts)

    def check(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError('device = "cuda": no CUDA device is visible here; use "cpu", or "auto"')
        for source in self.sources():
            weight_file(source)

    def files(self) -> list[Path]:
        """The local weight file of each source, in order."""
        return [weight_file(source) for source in self.sources()]


@dataclass(frozen=True, kw_only=True)
class TransformersReward(ModelReward):
    """A reward whose network and tokenizer are those of transformers."""

    def check(self) -> None:
        from importlib.util import find_spec

        if not find_spec("transformers"):
            raise MissingExtra(f"The reward {type(self).__name__}", "rewards")
        super().check()
