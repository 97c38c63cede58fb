"""Sizes for :mod:`grpaint.backends.synthetic.pipelines`: those of real models, and small ones.

Those of real models are the published configurations, except for the vocabularies.
"""

from dataclasses import dataclass
from typing import Any

HEAD = 64  # the most channels of an attention head


@dataclass(frozen=True)
class ClipSize:
    """A CLIP text encoder."""

    width: int
    layers: int
    tokens: int = 77


@dataclass(frozen=True)
class T5Size:
    """A T5 encoder."""

    width: int = 4096
    inner: int = 10240
    layers: int = 24
    heads: int = 64


@dataclass(frozen=True)
class VaeSize:
    """An ``AutoencoderKL``: widths by level, latent channels, and how latents are scaled and shifted."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    channels: int = 4
    scale: float = 0.13025
    shift: float | None = None


@dataclass(frozen=True)
class SdxlSize:
    """An SDXL-type pipeline; ``unet`` and ``depths``: widths and transformer layers by level, 0 for none."""

    pixels: int
    unet: tuple[int, ...]
    depths: tuple[Any, ...]
    up_depths: tuple[Any, ...] | None = None  # if they differ on the way up
    middle: bool = True  # whether the middle block has attention
    text: ClipSize = ClipSize(1024, 32)  # both encoders
    vae: VaeSize = VaeSize()


@dataclass(frozen=True)
class Sd3Size:
    """An SD3-type pipeline; ``dual``: the number of blocks with a second attention to the image."""

    pixels: int
    layers: int
    heads: int
    dual: int
    head: int = HEAD
    text: tuple[ClipSize, ClipSize] = (ClipSize(768, 12), ClipSize(1280, 32))
    t5: T5Size = T5Size()
    vae: VaeSize = VaeSize(channels=16, scale=1.5305, shift=0.0609)


@dataclass(frozen=True)
class FluxSize:
    """A pipeline of the type of FLUX.1 dev."""

    pixels: int
    layers: int
    single_layers: int
    heads: int
    head: int = 128
    text: ClipSize = ClipSize(768, 12)
    t5: T5Size = T5Size()
    vae: VaeSize = VaeSize(channels=16, scale=0.3611, shift=0.1159)


SMALL_T5 = T5Size(256, 512, 2, 4)
SIZES: dict[str, SdxlSize | Sd3Size | FluxSize] = {
    "demo": SdxlSize(32, (64, 128), (1, 1), None, True, ClipSize(64, 2, 16), VaeSize((32, 64, 64), 1, scale=1.0)),
    "xl-small": SdxlSize(256, (160, 320), (0, 2), None, True, ClipSize(256, 2), VaeSize((32, 64, 64), 1)),
    "sd3-small": Sd3Size(
        256, 6, 8, 2, 64, (ClipSize(192, 2), ClipSize(320, 2)), SMALL_T5, VaeSize((32, 64, 64), 1, 16, 1.5, 0.06)
    ),
    "ssd-1b": SdxlSize(1024, (320, 640, 1280), (0, (2, 2), (4, 4)), ((4, 4, 10), (2, 1, 1), 0), False),
    "sdxl": SdxlSize(1024, (320, 640, 1280), (0, 2, 10)),
    "sd3.5-medium": Sd3Size(1024, 24, 24, 13),
    "flux": FluxSize(1024, 19, 38, 24),
}
