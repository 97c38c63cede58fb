"""Bytes of any image file to an RGB picture, or the reason why not."""

import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

MOVING = ("GIF", "WEBP", "PNG")
MOST_PIXELS = 1 << 26  # 8192 x 8192: what is larger is taken for a decompression bomb
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
WHITE = (255, 255, 255)

# bombs are refused here, by header, before a pixel of them is decoded
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(Exception):
    """Why a file is no picture that can be trained on; few different words, so that they can be counted."""


def read_picture(raw: bytes) -> Image.Image:
    """An RGB picture, upright: CMYK, palette, grey and 16-bit converted, alpha on white, turned as EXIF says.

    Raises:
        BadImage: empty, not an image, cut short or corrupt, animated, too many pixels, floating-point pixels.
    """
    if not raw:
        raise BadImage("empty file")
    try:
        opened = Image.open(io.BytesIO(raw))
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage("not an image that Pillow reads") from None
    if math.prod(opened.size) > MOST_PIXELS:
        raise BadImage("too many pixels")
    try:
        if opened.format in MOVING and getattr(opened, "n_frames", 1) > 1:  # else further pages, such as previews
            raise BadImage("animated")
        opened.load()
        return _rgb(ImageOps.exif_transpose(opened))
    except BadImage:
        raise
    except Exception:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage("cut short or corrupt") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise BadImage("floating-point pixels")
    if picture.mode.startswith("I"):  # 16 bits of grey, of which Pillow's own conversion would keep the lowest 8
        grey = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        page = Image.new("RGB", over.size, WHITE)
        page.paste(over, mask=over.getchannel("A"))
        return page
    return picture.convert("RGB")


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, scaled to cover ``size`` (width, height); one of that size is left as it is."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def to_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """Pictures of one size as numbers in [0, 1]."""
    return torch.stack([torch.tensor(np.asarray(picture)).permute(2, 0, 1).float() / 255 for picture in pictures])


def average_hash(picture: Image.Image) -> int:
    """64 bits: which cells of an 8 x 8 grey copy are brighter than their mean. Near duplicates differ in few."""
    grey = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
    return int.from_bytes(np.packbits(grey > grey.mean()).tobytes(), "big")
