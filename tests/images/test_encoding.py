"""Image tensors as eight-bit pictures, PNG bytes and data URLs."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from grpaint.images.encoding import eight_bit, eight_bit_picture, png_bytes, png_data_url


def test_levels_are_rounded_half_to_even_and_clamped() -> None:
    row = torch.tensor([0, 0.5, 1.4, 1.5, 2.5, 254.6, 300, -7]) / 255
    assert eight_bit(row.expand(3, 1, 8))[0, 0].tolist() == [0, 0, 1, 2, 2, 255, 255, 0]


@pytest.mark.parametrize("optimize", [False, True])
def test_a_png_keeps_every_level(optimize: bool) -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    picture = eight_bit_picture(image)
    assert picture.size == (7, 5)
    assert eight_bit_picture(eight_bit(image)).tobytes() == picture.tobytes()
    raw = png_bytes(picture, optimize=optimize)
    levels = torch.from_numpy(np.array(Image.open(io.BytesIO(raw)))).permute(2, 0, 1)
    assert torch.equal(levels, eight_bit(image))
    head, _, body = png_data_url(picture, optimize=optimize).partition(",")
    assert (head, base64.b64decode(body)) == ("data:image/png;base64", raw)
