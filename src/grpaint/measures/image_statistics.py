"""Plain statistics of images that reveal reward hacking; no network computes them, so none can be fooled."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
DARK = 0.1  # luminance below it is dark; the embedded world's background has 0.12
EDGE = 0.1  # a larger change of luminance from one pixel to the next is an edge
LEVELS = 8  # levels of a channel in the colour histogram: 512 bins
PERIOD = 8  # pixels: the width of a latent pixel of the public VAEs and of a patch of the built-in model
SMALL = 32  # pixels: the side at which images are compared with each other

Images = Float[Tensor, "b 3 h w"]


def image_statistics(images: Images) -> dict[str, Float[Tensor, " b"]]:
    """Every statistic of images in [0, 1], by the name under which it is recorded; computed in fp32 on the CPU."""
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
    """The share of pixels at which the luminance gradient (forward differences right and down) exceeds ``EDGE``."""
    across, down = grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return (across.square() + down.square() > EDGE**2).float().mean((1, 2))


def colour_entropy(images: Images) -> Float[Tensor, " b"]:
    """Entropy in bits of each image's colour histogram, ``LEVELS`` levels a channel: 0 for one plain colour, to 9."""
    level = (images * LEVELS).long().clamp(0, LEVELS - 1).flatten(2)
    bins = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    counts = torch.zeros(len(images), LEVELS**3).scatter_add_(1, bins, torch.ones(bins.shape))
    return torch.special.entr(counts / bins.shape[1]).sum(1) / math.log(2)


def saturation(images: Images) -> Float[Tensor, " b"]:
    """Mean saturation of the pixels as in HSV, (max - min) / max; 0 for a black pixel."""
    high, low = images.amax(1), images.amin(1)
    return torch.where(high > 0, (high - low) / high.clamp(min=1e-6), 0.0).mean((1, 2))


def grid_energy(images: Images) -> Float[Tensor, " b"]:
    """Mean square of the pattern that repeats every ``PERIOD`` pixels, for pixel values in [0, 1].

    The pattern is the median over all blocks of that size, pixel by pixel, minus its mean: it keeps what most blocks
    share and drops what fewer than half of them have. 0 if an image is smaller than a block.
    """
    rows, columns = (side // PERIOD for side in images.shape[-2:])
    if not rows * columns:
        return torch.zeros(len(images))
    blocks = images[..., : rows * PERIOD, : columns * PERIOD].unflatten(3, (columns, PERIOD))
    blocks = blocks.unflatten(2, (rows, PERIOD)).permute(0, 1, 3, 5, 2, 4).flatten(4)
    pattern = blocks.median(-1).values
    return (pattern - pattern.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))


def thumbnails(images: Images) -> Float[Tensor, "b 3 32 32"]:
    """Return images in the size at which :func:`spread` compares them; images of that size stay as they are."""
    return F.adaptive_avg_pool2d(images.detach().float().cpu(), SMALL)


def spread(images: Images) -> Float[Tensor, " b"]:
    """For each image, its mean RMS pixel distance to the others of the batch at 32 x 32; 0 for a single image.

    It falls when images of different prompts become alike.
    """
    if len(images) < 2:
        return torch.zeros(len(images))
    small = thumbnails(images).flatten(1)
    distances = torch.cdist(small, small) / small.shape[1] ** 0.5
    return distances.fill_diagonal_(0).sum(1) / (len(images) - 1)
