"""Colours of embedded profiles, against the matrices and curves that make them."""

import icc
import numpy as np
import pytest
from PIL import Image, ImageCms

from grpaint.images.data import ImageData
from grpaint.images.pictures import read_picture
from images.test_pictures import encoded

P3 = icc.rgb(icc.DISPLAY_P3, 2.2)
COLOURS = np.array([[[200, 30, 30], [10, 120, 60], [90, 90, 200], [128] * 3, [255] * 3, [0] * 3]], np.uint8)


def encode(light):
    """The levels of sRGB for light in [0, 1], by its definition."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def in_srgb(levels, primaries=icc.DISPLAY_P3, power=2.2):
    """Levels of a display's profile in sRGB: its curve, its primaries, and those of sRGB backwards."""
    light = (levels / 255) ** power @ primaries.T @ np.linalg.inv(icc.SRGB).T
    return encode(light)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_profile_of_a_display_is_converted_by_its_primaries_and_curves(kind):
    colours = COLOURS.repeat(16, 0).repeat(16, 1)
    settings = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    raw = encoded(Image.fromarray(colours), kind, icc_profile=P3, **settings.get(kind, {}))
    plain = np.asarray(read_picture(raw, "ignore")).astype(int)
    assert np.abs(plain - colours).max() <= (0 if kind in ("PNG", "TIFF", "WEBP") else 6)
    read = np.asarray(read_picture(raw)).astype(float)
    assert np.abs(read - in_srgb(plain)).max() < 1.5  # measured 0.9: two roundings
    assert np.abs(read - plain).max() > 15


def test_transparent_and_palette_pictures_are_converted_before_they_are_laid_on_white():
    converted = in_srgb(COLOURS)[0, 0]
    half = Image.new("RGBA", (2, 2), (200, 30, 30, 128))
    read = read_picture(encoded(half, icc_profile=P3)).getpixel((0, 0))
    assert read == pytest.approx(tuple(255 - (255 - converted) * 128 / 255), abs=1.5)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 30, 30])
    assert read_picture(encoded(palette, icc_profile=P3)).getpixel((0, 0)) == pytest.approx(tuple(converted), abs=1.5)


@pytest.mark.parametrize("kind", ["L", "LA", "I;16", "1", "transparent"])
def test_a_profile_of_grey_is_converted_by_its_curve(kind):
    grey = Image.new("L", (2, 2), 128)
    pictures = {
        "L": grey,
        "LA": Image.merge("LA", (grey, Image.new("L", (2, 2), 255))),
        "I;16": Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)),
        "1": Image.new("1", (2, 2), 1),
        "transparent": grey,
    }
    settings = {"transparency": 7} if kind == "transparent" else {}
    level = 255.0 if kind == "1" else encode(np.array(128 / 255)).item()
    read = read_picture(encoded(pictures[kind], icc_profile=icc.grey(1.0), **settings))
    assert read.getpixel((0, 0)) == pytest.approx((level,) * 3, abs=1.5)
    assert read_picture(encoded(pictures[kind], icc_profile=P3)).getpixel((0, 0)) == pytest.approx(
        tuple(in_srgb(np.full(3, 255.0 if kind == "1" else 128.0))), abs=1.5
    )


def test_a_profile_of_a_press_is_converted():
    inks = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    inks.putpixel((1, 0), (0, 0, 255, 0))
    read = read_picture(encoded(inks, "TIFF", icc_profile=icc.cmyk()))
    assert read.getpixel((0, 0)) == pytest.approx((255,) * 3, abs=1)
    level = encode(np.array(((118 / 2.55 + 16) / 116) ** 3)).item()  # lightness to light, by its definition
    assert read.getpixel((1, 0)) == pytest.approx((level,) * 3, abs=2)


def test_srgb_leaves_every_level_and_so_does_a_profile_that_cannot_be_used():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (whole, whole[:200], b"no profile", icc.grey(1.0), icc.cmyk(), P3[:300]):
        assert np.array_equal(np.asarray(read_picture(encoded(Image.fromarray(noise), icc_profile=profile))), noise)
    inks = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert read_picture(encoded(inks, "TIFF", icc_profile=P3)).getpixel((0, 0)) == (255, 0, 0)


def test_the_setting_reaches_scans_and_training(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(3):
        file = tmp_path / f"set/{number}.png"
        Image.fromarray(COLOURS).resize((32, 32), Image.Resampling.NEAREST).save(file, icc_profile=P3)
        file.with_suffix(".txt").write_text(f"picture {number}")
    pixels = {}
    for profiles in ("ignore", "convert", "ignore"):
        data = ImageData(str(tmp_path / "set"), str(tmp_path / "set"), resolution=32, profiles=profiles)
        pixels[profiles] = data.batch(1, 0, 0).images()[0, :, 0, 0] * 255
    assert pixels["ignore"].tolist() == pytest.approx([200, 30, 30], abs=0.01)
    assert pixels["convert"].tolist() == pytest.approx(in_srgb(COLOURS)[0, 0].tolist(), abs=1.5)
