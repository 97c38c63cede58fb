"""Preprocessing against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from grpaint.vision.pixels import crop_to_square, pad_to_square, resize
from tiny_scorers import as_pil, pictures


@pytest.mark.parametrize("size", [(40, 56), (56, 31), (20, 20), (512, 384)])
@pytest.mark.parametrize("into", [(28, 39), (50, 28), (28, 28), (224, 224), (56, 31)])
def test_a_resize_equals_pillows(size: tuple[int, int], into: tuple[int, int]) -> None:
    images = pictures(*size, count=2)
    pixels = resize(images, *into)
    assert pixels.dtype == torch.float32
    by_pillow = [np.array(as_pil(image).resize(into[::-1], Image.Resampling.BICUBIC)) for image in images]
    assert torch.equal(pixels.permute(0, 2, 3, 1), torch.from_numpy(np.stack(by_pillow)).float() / 255)


def test_an_image_with_a_nan_stays_nan_and_its_neighbours_do_not() -> None:
    images = pictures(40, 40, count=2)
    images[1, 0, 3, 3] = torch.nan
    pixels = resize(images, 28, 28)
    assert pixels[1].isnan().all()
    assert torch.equal(pixels[:1], resize(images[:1], 28, 28))


def test_a_square_of_the_right_size_is_left_alone() -> None:
    images = pictures(28, 28)
    torch.testing.assert_close(crop_to_square(images, 28), images)
    torch.testing.assert_close(pad_to_square(images, 28), images)


def test_the_middle_is_cropped_and_margins_are_padded() -> None:
    images = pictures(28, 40)
    torch.testing.assert_close(crop_to_square(images, 28), images[..., 6:34])
    page = pad_to_square(pictures(20, 28), 28)
    assert page.shape[2:] == (28, 28)
    assert page[:, :, :4].eq(0).all()
    assert page[:, :, 24:].eq(0).all()
    torch.testing.assert_close(page[:, :, 4:24], pictures(20, 28))
