"""Decode the bytes of any image file to an RGB picture, or name the reason why they cannot be used."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from grpaint.images.colours import ColourConversion, colour_conversion

Profiles = Literal["convert", "ignore"]

ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
MAX_PIXELS = 1 << 26  # 8192 x 8192; a larger image is treated as a decompression bomb
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # of SUFFIXES; Pillow's EPS would start Ghostscript
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".apng", ".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".avif"),
)
WHITE = (255, 255, 255)
DAMAGED, OTHER_FORMAT = "cut short or corrupt", "a format that is not read"
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_OTHER_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"8BPS")  # JPEG XL, JPEG 2000, Photoshop
_BRANDS = (b"avif", b"avis")
_OTHER_BRANDS = (b"mif1", b"msf1", b"heic", b"heix", b"hevc", b"heim", b"heis")  # of HEIC, and of either

# read_picture refuses decompression bombs by their header, before it decodes a pixel of them
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")
# one text of a PNG may take as much as all of them: a graph or XMP of more than 1 MiB is no sign of damage
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class BadImage(Exception):
    """The reason why a file cannot be used as a training image, in one of a few fixed phrases, so it can be counted."""


def looks_like_picture(head: bytes) -> bool:
    """Whether a file's first 32 bytes are those of an image, of a format that is read or of another one."""
    return _is_of_read_format(head) or _is_of_other_format(head)


def _is_of_read_format(head: bytes) -> bool:
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    container = head[4:8] == b"ftyp" and head[8:12] in _BRANDS
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return bitmap or container or webp or head.startswith(_SIGNATURES)


def _is_of_other_format(head: bytes) -> bool:
    return head.startswith(_OTHER_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:12] in _OTHER_BRANDS)


def open_picture(raw: bytes) -> Image.Image:
    """Open an image file of one of ``FORMATS``, whatever its name says; pixels are decoded when they are first used.

    Raises:
        BadImage: if the file is empty, not an image, or has too many pixels.
    """
    if not raw:
        raise BadImage("empty file")
    if raw.startswith(b"version https://git-lfs"):
        raise BadImage("a pointer of Git LFS, not the image; run git lfs pull")
    try:
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception as error:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage(_too_much_text(error) or _unread(raw[:32])) from None
    if math.prod(picture.size) > MAX_PIXELS:
        raise BadImage("too many pixels")
    return picture


def _unread(head: bytes) -> str:
    """Why Pillow opens no picture in a file with these first bytes."""
    if _is_of_other_format(head):
        return OTHER_FORMAT
    return DAMAGED if _is_of_read_format(head) else "not an image that Pillow reads"


def _too_much_text(error: Exception) -> str:
    return f"more than {PngImagePlugin.MAX_TEXT_MEMORY >> 20} MiB of text" if "MAX_TEXT" in str(error) else ""


def read_picture(raw: bytes, profiles: Profiles = "convert") -> Image.Image:
    """Decode an image file to an upright RGB picture.

    CMYK, palette, grey and 16-bit images are converted, transparent pixels are laid on white, and the picture is
    rotated as its EXIF orientation requires. With ``profiles`` "convert" the colours of an embedded ICC profile are
    converted to sRGB.

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
        to_srgb = colour_conversion(picture.info.get("icc_profile")) if profiles == "convert" else None
        return _to_rgb(_upright(picture), to_srgb)
    except BadImage:
        raise
    except Exception as error:  # noqa: BLE001 - reason: a decoder may raise anything
        raise BadImage(_too_much_text(error) or DAMAGED) from None


def _upright(picture: Image.Image) -> Image.Image:
    """Rotate a picture as its EXIF orientation requires; damaged EXIF requires nothing, as in browsers."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - reason: the pixels are whole, and the parser of EXIF may raise anything
        return picture


def _to_rgb(picture: Image.Image, to_srgb: ColourConversion | None) -> Image.Image:
    convert = to_srgb or (lambda image: image.convert("RGB"))
    if picture.mode == "F":
        raise BadImage("floating-point pixels")
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would keep the lowest 8 bits
        levels = np.asarray(picture)
        eight_bit = (levels.astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        colours, clear = convert(Image.fromarray(eight_bit)), picture.info.get("transparency")
        opaque = None if clear is None else Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
    else:
        has_alpha = picture.has_transparency_data
        opaque = picture.convert("RGBA").getchannel("A") if has_alpha else None
        colours = convert(_without_alpha(picture) if has_alpha else picture)
    if opaque is None:
        return colours
    page = Image.new("RGB", colours.size, WHITE)
    page.paste(colours, mask=opaque)
    return page


def _without_alpha(picture: Image.Image) -> Image.Image:
    """The stored colours of a picture with transparent pixels; grey stays grey, for its profile's sake."""
    return picture.convert("L") if picture.mode in ("1", "L", "LA") else picture.convert("RGBA").convert("RGB")


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
