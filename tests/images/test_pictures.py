"""Files of every kind that turns up in a folder of images: read right, or refused by a name."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from grpaint.images.buckets import nearest, sizes
from grpaint.images.pictures import BadImage, average_hash, crop_to, read_picture, to_tensor


def encoded(picture, kind="PNG", **settings):
    into = io.BytesIO()
    picture.save(into, kind, **settings)
    return into.getvalue()


def photo(width=40, high=30, seed=0):
    """Smooth enough for JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, high), Image.Resampling.BICUBIC)


def png_of_size(width, high):
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, high, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


FRAMES = [photo(seed=1), photo(seed=2)]
WHOLE = encoded(photo(300, 200), "JPEG")
BAD = {
    "empty file": [b""],
    "not an image that Pillow reads": [b"<html>not found</html>", b"\x89PNG", encoded(photo(), "PNG")[8:]],
    "cut short or corrupt": [
        WHOLE[: len(WHOLE) // 2],
        encoded(photo())[:-60],
        encoded(photo())[:60] + bytes(40) + encoded(photo())[100:],
        encoded(photo(), "TIFF")[:900],
        encoded(photo(), "WEBP")[:40],
        encoded(photo(), "AVIF")[:100],
    ],
    "a format that is not read": [encoded(photo(), "JPEG2000"), b"\0\0\0\x18ftypheic" + bytes(40), b"8BPS" + bytes(40)],
    "too many pixels": [png_of_size(30_000, 30_000), png_of_size(9_000, 8_000)],
    "animated": [
        encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    ],
    "floating-point pixels": [encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")],
}


@pytest.mark.parametrize(("reason", "raw"), [(reason, raw) for reason, raws in BAD.items() for raw in raws])
def test_a_bad_file_is_refused_by_its_reason(reason, raw):
    with pytest.raises(BadImage, match=reason):
        read_picture(raw)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_still_images_of_every_kind_are_read(kind):
    assert read_picture(encoded(photo(), kind)).size == (40, 30)


def test_of_a_cameras_pictures_the_first_is_read():
    raw = encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:])
    assert Image.open(io.BytesIO(raw)).n_frames == 2
    difference = np.asarray(read_picture(raw), np.int16) - np.asarray(FRAMES[0], np.int16)
    assert np.abs(difference).mean() < 5


def test_alpha_is_laid_on_white_in_every_mode_that_has_it():
    clear = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    expected = [(255, 255, 255), (200, 0, 0)]
    assert [read_picture(encoded(clear)).getpixel((x, 0)) for x in (0, 1)] == expected
    half = read_picture(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).getpixel((0, 0))
    assert half == (127, 127, 127)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert read_picture(encoded(grey)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert [read_picture(encoded(palette, transparency=0)).getpixel((x, 0)) for x in (0, 1)] == expected
    assert read_picture(encoded(palette)).getpixel((0, 0)) == (9, 9, 9)


def test_cmyk_is_converted():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert read_picture(encoded(red, "JPEG", quality=100)).getpixel((8, 8)) == pytest.approx((254, 0, 0), abs=4)


def test_sixteen_bits_keep_the_upper_eight():
    grey = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert [read_picture(encoded(grey)).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_sixteen_bit_grey_may_have_a_level_that_is_clear():
    grey = Image.fromarray(np.array([[300, 301]], np.uint16))
    assert [read_picture(encoded(grey, transparency=300)).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (1,) * 3]


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_a_png_with_much_text_is_read_up_to_a_limit_that_is_named(monkeypatch, kind, place):
    body = b"name\0" + (b"\0" if kind == "zTXt" else b"\1\0\0\0") + zlib.compress(b"x" * (2 << 20))
    text = struct.pack(">I", len(body)) + (chunk := kind.encode() + body) + struct.pack(">I", zlib.crc32(chunk))
    plain = encoded(photo())
    at = plain.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    raw = plain[:at] + text + plain[at:]
    assert np.array_equal(np.asarray(read_picture(raw)), np.asarray(photo()))
    for name in ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY"):
        monkeypatch.setattr(PngImagePlugin, name, 1 << 20)
    with pytest.raises(BadImage, match="more than 1 MiB of text"):
        read_picture(raw)


def test_damaged_exif_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encoded(photo(), "JPEG", exif=exif, quality=95)
    for damage in (b"Exif\0\0XX", b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        damaged = raw.replace(b"Exif\0\0" + exif.tobytes()[6:][: len(damage) - 6], damage)
        assert damaged != raw
        assert read_picture(damaged).size == photo().size


def test_a_pointer_of_git_lfs_is_named():
    with pytest.raises(BadImage, match="a pointer of Git LFS"):
        read_picture(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def test_a_turned_photograph_is_set_upright():
    flat = photo(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    turned = read_picture(encoded(flat, "PNG", exif=exif))
    assert turned.size == (30, 40)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(flat), -1))


def test_a_picture_of_the_right_size_keeps_every_pixel():
    picture = photo(32, 32)
    tensor = to_tensor([crop_to(read_picture(encoded(picture)), (32, 32))])
    assert tensor.shape == (1, 3, 32, 32)
    assert torch.equal((tensor[0] * 255).permute(1, 2, 0).byte(), torch.tensor(np.asarray(picture)))


def test_fitting_takes_the_middle():
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste("red", (0, 0, 10, 10))
    wide.paste("blue", (20, 0, 30, 10))
    assert crop_to(wide, (10, 10)).getcolors() == [(100, (255, 255, 255))]
    assert crop_to(wide, (6, 4)).size == (6, 4)


def test_near_duplicates_have_near_hashes():
    one = photo(200, 150, seed=3)
    again = read_picture(encoded(one.resize((90, 70)), "JPEG", quality=60))
    other = photo(200, 150, seed=4)
    assert (average_hash(one) ^ average_hash(again)).bit_count() <= 3
    assert (average_hash(one) ^ average_hash(other)).bit_count() > 10


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (64, 16), (32, 32)])
def test_buckets_have_about_the_area_and_whole_steps(resolution, step):
    buckets = sizes(resolution, step)
    assert (resolution, resolution) in buckets
    assert all((high, width) in buckets for width, high in buckets)
    for width, high in buckets:
        assert width % step == high % step == 0
        assert max(width, high) <= 2 * resolution
        # never larger, and smaller by less than one step of the shorter side
        assert resolution**2 - max(width, high) * step < width * high <= resolution**2


def test_an_image_goes_to_the_shape_that_is_nearest():
    buckets = sizes(512, 64)
    assert nearest((700, 700), buckets) == (512, 512)
    assert nearest((1920, 1080), buckets) == (640, 384)
    assert nearest((1080, 1920), buckets) == (384, 640)
    assert nearest((4000, 100), buckets) == (1024, 256)
