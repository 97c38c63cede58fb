"""Decode the bytes of any image file to an RGB picture, or name the reason why they cannot be used."""

import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

ANIMATED_FORMATS = ("GIF", "WEBP", "PNG")
MAX_PIXELS = 1 << 26  # 8192 x 8192; a larger image is treated as a decompression bomb
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # what SUFFIXES mean; Pillow's EPS would start Ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
WHITE = (255, 255, 255)

# read_picture refuses decompression bombs by their header, before it decodes a pixel of them
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(Exception):
    """The reason why a file cannot be used as a training image, in one of a few fixed phrases, so it can be counted."""


def open_picture(raw: bytes) -> Image.Image:
    """Open an image file of one of ``FORMATS``, whatever its name says; pixels are decoded when they are first used.

    Raises:
        BadImage: if the file is empty, not an image, or has too many pixels.
    """
    if not raw:
        raise BadImage("empty file")
    try:
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage("not an image that Pillow reads") from None
    if math.prod(picture.size) > MAX_PIXELS:
        raise BadImage("too many pixels")
    return picture


def read_picture(raw: bytes) -> Image.Image:
    """Decode an image file to an upright RGB picture.

    CMYK, palette, grey and 16-bit images are converted, transparent pixels are laid on white, and the picture is
    rotated as its EXIF orientation requires.

    Raises:
        BadImage: if the file is empty, not an image, cut short or corrupt, animated, has too many pixels, or
            floating-point pixels.
    """
    picture = open_picture(raw)
    try:
        # frames of other formats are further pages, such as a camera's previews; the first one is the picture
        if picture.format in ANIMATED_FORMATS and getattr(picture, "n_frames", 1) > 1:
            raise BadImage("animated")
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))
    except BadImage:
        raise
    except Exception:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage("cut short or corrupt") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise BadImage("floating-point pixels")
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would keep the lowest 8 bits
        grey = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        foreground = picture.convert("RGBA")
        page = Image.new("RGB", foreground.size, WHITE)
        page.paste(foreground, mask=foreground.getchannel("A"))
        return page
    return picture.convert("RGB")


def crop_to(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to cover ``size`` (width, height) and cut out its middle; unchanged if it has that size."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def to_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """Stack RGB pictures of one size into a tensor with values in [0, 1]."""
    return torch.stack([torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255 for picture in pictures])


def average_hash(picture: Image.Image) -> int:
    """Compute a 64-bit hash: which cells of an 8 x 8 grey copy are brighter than their mean.

    The hashes of near duplicates differ in few bits.
    """
    grey = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
    return int.from_bytes(np.packbits(grey > grey.mean()).tobytes(), "big")
