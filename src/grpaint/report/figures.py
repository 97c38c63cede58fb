"""Pictures that a run saves: single images, enlarged, and a sheet of rows that compares them."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from grpaint.images.encoding import eight_bit_picture
from grpaint.storage.atomic import write_atomic

CELL, MARGIN, CAPTION = 128, 10, 44


def to_picture(image: Tensor, side: int = CELL) -> Image.Image:
    """Convert ``[3, h, w]`` in [0, 1] to a picture ``side`` pixels wide; small ones are enlarged without smoothing."""
    picture = eight_bit_picture(image)
    smooth = Image.Resampling.LANCZOS if picture.width > side else Image.Resampling.NEAREST
    return picture.resize((side, side * picture.height // picture.width), smooth)


def picture_sheet(rows: Sequence[tuple[str, Tensor]], captions: Sequence[str]) -> Image.Image:
    """Arrange images on a sheet: each of ``rows`` is a title and its images ``[b, 3, h, w]``, one per caption."""
    left, font = 74, ImageFont.load_default(13)
    size = left + len(captions) * (CELL + MARGIN) + MARGIN, CAPTION + len(rows) * (CELL + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        lines = "\n".join(textwrap.wrap(caption, 21))
        pen.text((left + column * (CELL + MARGIN), 4), lines, fill="black", font=ImageFont.load_default(11), spacing=1)
    for line, (title, images) in enumerate(rows):
        top = CAPTION + line * (CELL + MARGIN)
        pen.text((MARGIN, top + CELL // 2 - 8), title, fill="black", font=font)
        for column, image in enumerate(images):
            sheet.paste(to_picture(image), (left + column * (CELL + MARGIN), top))
    return sheet


def new_file(file: Path) -> Path:
    """``file`` itself if it does not exist, else the first free name of NAME-2, NAME-3 and so on."""
    names = itertools.chain([file], (file.with_name(f"{file.stem}-{n}{file.suffix}") for n in itertools.count(2)))
    return next(name for name in names if not name.exists())


def save_picture(picture: Image.Image, file: Path, info: PngInfo | None = None) -> None:
    """Write a PNG with its metadata in one step, and create its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda stream: picture.save(stream, "PNG", pnginfo=info))
