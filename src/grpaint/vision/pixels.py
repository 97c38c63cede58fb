"""Pictures as scorers expect them: eight-bit colours, resized by Pillow, cropped or padded to a square, normalised.

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


def resized(images: Pixels, height: int, width: int) -> Pixels:
    """Images in [0, 1], rounded to eight bits and resized by Pillow (``BICUBIC``, antialiased): fp32 in [0, 1].

    Pillow computes on the CPU; the images come back on their own device. An image with a NaN comes back as NaN, so that
    its score is refused and not taken for that of a black picture.
    """
    images = images.detach()
    broken = images.isnan().flatten(1).any(1)
    levels = (images.float().nan_to_num().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in levels]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).to(images.device)
    pixels = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    return torch.where(broken[:, None, None, None], torch.nan, pixels)


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
