"""Plain statistics of images that betray reward hacking: no model behind them, so nothing in them can be fooled."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
DARK = 0.1  # of luminance; the embedded world's background has .12
EDGE = 0.1  # change of luminance from one pixel to the next
LEVELS = 8  # of a channel, for the entropy: 512 bins
PERIOD = 8  # pixels: a latent pixel of the public VAEs, and a patch of the built-in model
SMALL = 32  # pixels: the side at which images are compared with each other

Images = Float[Tensor, "b 3 h w"]


def image_statistics(images: Images) -> dict[str, Float[Tensor, " b"]]:
    """Every statistic of images in [0, 1], by the name under which it is recorded."""
    images = images.detach().float().cpu()
    grey = torch.einsum("bchw,c->bhw", images, LUMINANCE)
    return {
        "image/dark_fraction": (grey < DARK).float().mean((1, 2)),
        "image/edge_density": edge_density(grey),
        "image/colour_entropy": colour_entropy(images),
        "image/saturation": saturation(images),
        "image/grid_energy": grid_energy(images),
        "image/spread": spread(images),
    }


def edge_density(grey: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """The share of pixels from which luminance changes by more than ``EDGE`` to the next pixel right and below."""
    across, down = grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return (across.square() + down.square() > EDGE**2).float().mean((1, 2))


def colour_entropy(images: Images) -> Float[Tensor, " b"]:
    """Entropy of an image's own colour histogram in bits, of ``LEVELS`` levels a channel: 0 for an even image, to 9."""
    level = (images * LEVELS).long().clamp(0, LEVELS - 1).flatten(2)
    bins = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    counts = torch.zeros(len(images), LEVELS**3).scatter_add_(1, bins, torch.ones(bins.shape))
    return torch.special.entr(counts / bins.shape[1]).sum(1) / math.log(2)


def saturation(images: Images) -> Float[Tensor, " b"]:
    """Mean saturation of the pixels as in HSV, (max - min) / max, 0 where a pixel is black."""
    most, least = images.amax(1), images.amin(1)
    return torch.where(most > 0, (most - least) / most.clamp(min=1e-6), 0.0).mean((1, 2))


def grid_energy(images: Images) -> Float[Tensor, " b"]:
    """Mean square of what repeats every ``PERIOD`` pixels, in units of [0, 1] squared.

    The median over all blocks of that size, place by place, without its mean: a pattern that most blocks share stays,
    what stands in fewer than half of them goes. 0 where an image holds no whole block.
    """
    rows, columns = (side // PERIOD for side in images.shape[-2:])
    if not rows * columns:
        return torch.zeros(len(images))
    blocks = images[..., : rows * PERIOD, : columns * PERIOD].unflatten(3, (columns, PERIOD))
    blocks = blocks.unflatten(2, (rows, PERIOD)).permute(0, 1, 3, 5, 2, 4).flatten(4)
    pattern = blocks.median(-1).values
    return (pattern - pattern.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))


def spread(images: Images) -> Float[Tensor, " b"]:
    """Root-mean-square distance of an image to the others of the batch, at 32 x 32, mean over them; 0 for one alone.

    Images of different prompts that grow alike show here.
    """
    if len(images) < 2:
        return torch.zeros(len(images))
    small = F.adaptive_avg_pool2d(images, SMALL).flatten(1)
    away = torch.cdist(small, small) / small.shape[1] ** 0.5
    return away.fill_diagonal_(0).sum(1) / (len(images) - 1)
