"""Colours of embedded ICC profiles, such as the Display P3 of phones, converted to sRGB."""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

ColourConversion = Callable[[Image.Image], Image.Image]

SAME_LEVELS = 2  # of 255: a profile that changes no colour by more is taken for sRGB, and nothing is converted
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by a profile's own name of its colour space


def colour_conversion(profile: bytes | None) -> ColourConversion | None:
    """Return the conversion of an 8-bit picture with this ICC profile to RGB pictures in sRGB.

    None if the profile is missing, damaged, or sRGB itself. A picture whose mode is not that of the profile, such as a
    palette or grey picture with a profile of RGB, is converted to the profile's mode first; a CMYK profile of a picture
    without CMYK, or a grey one of a picture with colours, is not used.
    """
    transform = _transform(profile) if profile else None
    if transform is None:
        return None
    mode = transform.input_mode

    def convert(picture: Image.Image) -> Image.Image:
        colours = {"1": "L", "CMYK": "CMYK", "L": "L", "I": "L"}.get(picture.mode, "RGB")
        if mode not in (colours, "RGB") or (colours == "CMYK" and mode == "RGB"):
            return picture.convert("RGB")
        out = transform.apply(picture.convert(mode))
        assert out is not None
        return out

    return convert


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        probe = _probe(mode)
        converted = transform.apply(probe)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError):  # damaged, or a profile of another use
        return None
    plain = np.asarray(probe.convert("RGB"), np.int16)
    is_srgb = mode != "CMYK" and np.abs(np.asarray(converted, np.int16) - plain).max() <= SAME_LEVELS
    return None if is_srgb else transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """A picture of colours from all parts of a mode's range."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), -1).reshape(-1, 9, len(mode))
    return Image.fromarray(colours.squeeze(-1) if len(mode) == 1 else colours, mode)
