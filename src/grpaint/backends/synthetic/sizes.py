"""Sizes of pipelines that :mod:`grpaint.backends.synthetic.pipelines` makes: of real models, and of small ones.

Those of real models are their published configurations, except for the vocabularies.
"""

from dataclasses import dataclass
from typing import Any

HEAD = 64  # channels of an attention head, at most


@dataclass(frozen=True)
class Clip:
    """A CLIP text encoder."""

    width: int
    layers: int
    tokens: int = 77


@dataclass(frozen=True)
class T5:
    """A T5 encoder."""

    width: int = 4096
    inner: int = 10240
    layers: int = 24
    heads: int = 64


@dataclass(frozen=True)
class Vae:
    """An ``AutoencoderKL``: widths by level, latent channels, and how latents are scaled and shifted."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    channels: int = 4
    scale: float = 0.13025
    shift: float | None = None


@dataclass(frozen=True)
class Xl:
    """An SDXL-type pipeline: ``pixels`` a side, U-Net widths and transformer layers by level, 0 for none."""

    pixels: int
    unet: tuple[int, ...]
    depths: tuple[Any, ...]
    up_depths: tuple[Any, ...] | None = None  # where they differ on the way up
    middle: bool = True  # attention in the middle block
    text: Clip = Clip(1024, 32)  # both encoders
    vae: Vae = Vae()


@dataclass(frozen=True)
class Sd3:
    """An SD3-type pipeline: ``dual`` is the number of blocks that attend to the image a second time."""

    pixels: int
    layers: int
    heads: int
    dual: int
    head: int = HEAD
    text: tuple[Clip, Clip] = (Clip(768, 12), Clip(1280, 32))
    t5: T5 = T5()
    vae: Vae = Vae(channels=16, scale=1.5305, shift=0.0609)


@dataclass(frozen=True)
class Flux:
    """A FLUX.1-dev-type pipeline."""

    pixels: int
    layers: int
    single_layers: int
    heads: int
    head: int = 128
    text: Clip = Clip(768, 12)
    t5: T5 = T5()
    vae: Vae = Vae(channels=16, scale=0.3611, shift=0.1159)


SMALL_T5 = T5(256, 512, 2, 4)
SIZES: dict[str, Xl | Sd3 | Flux] = {
    "demo": Xl(32, (64, 128), (1, 1), None, True, Clip(64, 2, 16), Vae((32, 64, 64), 1, scale=1.0)),
    "xl-small": Xl(256, (160, 320), (0, 2), None, True, Clip(256, 2), Vae((32, 64, 64), 1)),
    "sd3-small": Sd3(256, 6, 8, 2, 64, (Clip(192, 2), Clip(320, 2)), SMALL_T5, Vae((32, 64, 64), 1, 16, 1.5, 0.06)),
    "ssd-1b": Xl(1024, (320, 640, 1280), (0, (2, 2), (4, 4)), ((4, 4, 10), (2, 1, 1), 0), False),
    "sdxl": Xl(1024, (320, 640, 1280), (0, 2, 10)),
    "sd3.5-medium": Sd3(1024, 24, 24, 13),
    "flux": Flux(1024, 19, 38, 24),
}
