"""Images for the rewards' self-tests: a plain drawing, a sunset, noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair
from grpaint.core.rng import uniform

Picture = Float[Tensor, "3 h w"]


def noise(side: int = 224) -> Picture:
    """Uniform noise in every pixel and channel; the same at every call."""
    return uniform(("self-test", side), 3 * side * side).view(3, side, side)


def _disc(side: int, y: float, radius: float) -> Tensor:
    """Mask ``[side, side]`` of a disc, horizontally centred; ``y`` and ``radius`` are shares of the side."""
    position = (torch.arange(side) + 0.5) / side
    return (position[:, None] - y) ** 2 + (position[None, :] - 0.5) ** 2 < radius**2


def circle(side: int = 224) -> Picture:
    """A red circle on white."""
    red, white = torch.tensor([0.86, 0.08, 0.1]).view(3, 1, 1), torch.ones(3, side, side)
    return torch.where(_disc(side, 0.5, 0.3), red, white)


def sunset(side: int = 224) -> Picture:
    """The sun over the sea, under a sky from blue to orange."""
    down = torch.linspace(0, 1, side).view(1, side, 1).expand(3, side, side)
    high, low, sea = (
        torch.tensor(colour).view(3, 1, 1) for colour in ((0.16, 0.2, 0.45), (0.98, 0.6, 0.25), (0.08, 0.16, 0.3))
    )
    sky = high + (low - high) * (down / 0.62).clamp(max=1)
    sky = torch.where(_disc(side, 0.5, 0.11), torch.tensor([1.0, 0.9, 0.6]).view(3, 1, 1), sky)
    return torch.where(down < 0.62, sky, sea + 0.25 * (1 - down))


def circle_pair(low: float, high: float) -> Pair:
    """Return the self-test of rewards that read captions: a red circle must outscore noise, both in [low, high]."""
    return Pair(circle(), noise(), Prompt("a red circle on a white background"), low, high)
