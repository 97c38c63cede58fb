"""Preprocessing against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from grpaint.vision.pixels import cut, padded, resized
from tiny_scorers import as_pil, pictures, resized_by_pillow


@pytest.mark.parametrize("size", [(40, 56), (56, 31), (20, 20), (512, 384)])
@pytest.mark.parametrize("into", [(28, 39), (50, 28), (28, 28), (224, 224), (56, 31)])
def test_a_resize_equals_pillows(size: tuple[int, int], into: tuple[int, int]) -> None:
    images = pictures(*size, count=2)
    found = (resized(images, *into) * 255).round().permute(0, 2, 3, 1)
    axis_by_axis = [np.array(resized_by_pillow(as_pil(image), *into[::-1])) for image in images]
    assert torch.equal(found.byte(), torch.from_numpy(np.stack(axis_by_axis)))
    at_once = [np.array(as_pil(image).resize(into[::-1], Image.Resampling.BICUBIC)) for image in images]
    assert (found - torch.from_numpy(np.stack(at_once)).float()).abs().max() <= 1


def test_a_square_of_the_right_size_is_left_alone() -> None:
    images = pictures(28, 28)
    torch.testing.assert_close(cut(images, 28), images)
    torch.testing.assert_close(padded(images, 28), images)


def test_what_is_cut_and_what_is_padded() -> None:
    images = pictures(28, 40)
    torch.testing.assert_close(cut(images, 28), images[..., 6:34])
    page = padded(pictures(20, 28), 28)
    assert page.shape[2:] == (28, 28)
    assert page[:, :, :4].eq(0).all()
    assert page[:, :, 24:].eq(0).all()
    torch.testing.assert_close(page[:, :, 4:24], pictures(20, 28))
