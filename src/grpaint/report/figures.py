"""Pictures that a run leaves: one image enlarged, and a page of rows that compares them."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from grpaint.images.encoding import eight_bit_picture

CELL, MARGIN, CAPTION = 128, 10, 44


def to_picture(image: Tensor, side: int = CELL) -> Image.Image:
    """``[3, h, w]`` in [0, 1] as a picture, small ones enlarged without smoothing."""
    picture = eight_bit_picture(image)
    smooth = Image.Resampling.LANCZOS if picture.width > side else Image.Resampling.NEAREST
    return picture.resize((side, side * picture.height // picture.width), smooth)


def rows_of_pictures(rows: Sequence[tuple[str, Tensor]], captions: Sequence[str]) -> Image.Image:
    """One row a title, one column a caption."""
    left, font = 74, ImageFont.load_default(13)
    size = left + len(captions) * (CELL + MARGIN) + MARGIN, CAPTION + len(rows) * (CELL + MARGIN) + MARGIN
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for column, caption in enumerate(captions):
        lines = "\n".join(textwrap.wrap(caption, 21))
        pen.text((left + column * (CELL + MARGIN), 4), lines, fill="black", font=ImageFont.load_default(11), spacing=1)
    for line, (title, images) in enumerate(rows):
        top = CAPTION + line * (CELL + MARGIN)
        pen.text((MARGIN, top + CELL // 2 - 8), title, fill="black", font=font)
        for column, image in enumerate(images):
            page.paste(to_picture(image), (left + column * (CELL + MARGIN), top))
    return page


def new_file(file: Path) -> Path:
    """``file``, or where there is one already NAME-2, NAME-3 and so on."""
    names = itertools.chain([file], (file.with_name(f"{file.stem}-{n}{file.suffix}") for n in itertools.count(2)))
    return next(name for name in names if not name.exists())


def save_picture(page: Image.Image, file: Path, info: PngInfo | None = None) -> None:
    """Write a PNG, and what it says of itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file, pnginfo=info)
