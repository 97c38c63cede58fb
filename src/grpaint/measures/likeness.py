"""The likeness of an image to its reference, pixel by pixel: SSIM and PSNR, computed by torchmetrics."""

from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import MissingExtra

MIN_SIDE = 11  # pixels: the side of SSIM's Gaussian window


def check_installed() -> None:
    """Refuse, before anything is sampled, if :func:`likeness` could not be computed.

    Raises:
        MissingExtra: if torchmetrics is not installed.
    """
    if find_spec("torchmetrics") is None:
        raise MissingExtra("evaluate (its SSIM and PSNR)", "metrics")


def likeness(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """``ssim`` (Wang et al. 2004; Gaussian window of 11, sigma 1.5) and ``psnr`` in dB of images in [0, 1].

    SSIM is the mean over all pixels, with images mirrored at their borders; code that leaves the borders out gives
    other values. Equal images have SSIM 1 and an infinite PSNR.

    Raises:
        ValueError: if images are smaller than the window, or differ in size from their references.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    if images.shape != references.shape or min(images.shape[-2:]) < MIN_SIDE:
        raise ValueError(
            f"SSIM and PSNR compare images of one size, {MIN_SIDE} pixels or more; got {tuple(images.shape)} and "
            f"{tuple(references.shape)}"
        )
    a, b = images.detach().double().cpu(), references.detach().double().cpu()
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return {"ssim": torch.as_tensor(ssim), "psnr": psnr}
