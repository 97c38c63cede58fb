"""Pictures as scorers want them: eight-bit colours, Pillow's bicubic resize, cut or padded to a square, normalised.

The originals read files, so a picture is rounded to eight bits first. The resize is Pillow's: bicubic (a = -0.5), with
antialiasing, in whole numbers, the horizontal axis before the vertical. (Pillow 13 may turn the order round where that
is cheaper, which moves a pixel by one level at most; torch's own bicubic resize rounds otherwise, too.)
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, "b 3 h w"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@functools.cache
def _weights(size: int, into: int) -> Tensor:
    """Pillow's bicubic weights along one axis, ``[into, size]``, in units of 2 ** -22, to which it rounds them."""
    scale = size / into
    wide = max(scale, 1.0)  # antialiasing: the kernel grows where pixels get fewer
    centre = (torch.arange(into, dtype=torch.float64)[:, None] + 0.5) * scale
    at = torch.arange(size, dtype=torch.float64)[None]
    first = (centre - 2 * wide + 0.5).clamp(min=0).trunc()
    last = (centre + 2 * wide + 0.5).trunc().clamp(max=size)
    x = ((at - centre + 0.5) / wide).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * ((at >= first) & (at < last))
    unit = weight / weight.sum(1, keepdim=True) * 2**22
    return torch.where(unit < 0, unit - 0.5, unit + 0.5).trunc()


def resized(images: Pixels, height: int, width: int) -> Pixels:
    """Images in [0, 1] at another size, in [0, 1]; along each axis equal to Pillow's ``BICUBIC`` in every pixel."""
    levels = (images.clamp(0, 1) * 255).round().double()  # whole numbers below 2 ** 32: exact in any order
    for axis, size in ((3, width), (2, height)):
        if levels.shape[axis] != size:
            weights = _weights(levels.shape[axis], size).to(levels.device)
            sums = levels @ weights.T if axis == 3 else weights @ levels
            levels = ((sums + 2**21) / 2**22).floor().clamp(0, 255)
    return (levels / 255).float()


def cut(images: Pixels, side: int, *, nearest: bool = False) -> Pixels:
    """The shorter side to ``side``, then the middle square.

    An odd margin is split downwards (CLIP's processor in transformers), or with ``nearest`` rounded to even
    (torchvision, which ImageReward used).
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    images = resized(images, int(side * height / shorter), int(side * width / shorter))
    over = [size - side for size in images.shape[2:]]
    top, left = (round(margin / 2) if nearest else margin // 2 for margin in over)
    return images[:, :, top : top + side, left : left + side]


def padded(images: Pixels, side: int) -> Pixels:
    """The longer side to ``side``, the picture in the middle of black (HPSv2)."""
    height, width = images.shape[2:]
    scale = side / max(height, width)
    images = resized(images, round(height * scale), round(width * scale))
    down, right = side - images.shape[2], side - images.shape[3]
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalised(images: Pixels) -> Pixels:
    """Each channel minus CLIP's mean, over CLIP's spread."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std
