"""Image preparation for scorers: rounded to eight bits, resized by Pillow, cropped or padded to a square, normalised.

The published scorers read image files, so images are rounded to eight bits first.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Pixels = Float[Tensor, "b 3 h w"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize(images: Pixels, height: int, width: int) -> Pixels:
    """Round images in [0, 1] to eight bits and resize them by Pillow (``BICUBIC``, antialiased); fp32 in [0, 1].

    Pillow computes on the CPU; the images are returned on their own device. An image that contains a NaN is returned
    as NaN, so that its score is refused instead of being that of a picture with black pixels.
    """
    images = images.detach()
    has_nan = images.isnan().flatten(1).any(1)
    levels = (images.float().nan_to_num().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in levels]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).to(images.device)
    pixels = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    return torch.where(has_nan[:, None, None, None], torch.nan, pixels)


def crop_to_square(images: Pixels, side: int, *, nearest: bool = False) -> Pixels:
    """Resize the shorter side to ``side`` and crop the middle square.

    Half of an odd margin is rounded down, as by CLIP's processor in transformers, or with ``nearest`` to the nearest
    even number, as by torchvision, which ImageReward used.
    """
    height, width = images.shape[2:]
    shorter = min(height, width)
    images = resize(images, int(side * height / shorter), int(side * width / shorter))
    margins = [size - side for size in images.shape[2:]]
    top, left = (round(margin / 2) if nearest else margin // 2 for margin in margins)
    return images[:, :, top : top + side, left : left + side]


def pad_to_square(images: Pixels, side: int) -> Pixels:
    """Resize the longer side to ``side`` and pad with black on both sides, as HPSv2 does."""
    height, width = images.shape[2:]
    scale = side / max(height, width)
    images = resize(images, round(height * scale), round(width * scale))
    down, right = side - images.shape[2], side - images.shape[3]
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalise(images: Pixels) -> Pixels:
    """Subtract CLIP's mean from each channel and divide by CLIP's standard deviation."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std
