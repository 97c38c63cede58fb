"""Image tensors to eight bits, to Pillow pictures, and to PNG as bytes or as a data URL."""

import base64
import io

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def eight_bit(images: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """Images in [0, 1] rounded to 256 levels, half to even, as image files hold them."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def eight_bit_picture(image: Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as a Pillow picture of eight bits; one of uint8 keeps its levels."""
    levels = image if image.dtype == torch.uint8 else eight_bit(image)
    return Image.fromarray(levels.detach().cpu().permute(1, 2, 0).contiguous().numpy())


def png_bytes(picture: Image.Image, *, optimize: bool = False) -> bytes:
    """The PNG file of a picture; ``optimize`` takes longer and gives a smaller one."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=optimize)
    return file.getvalue()


def png_data_url(picture: Image.Image, *, optimize: bool = False) -> str:
    """The PNG file of a picture as the text of a ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture, optimize=optimize)).decode()
