"""What a run shows a person: the table of before and after, and pictures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

CELL, MARGIN, CAPTION = 128, 10, 44


def to_picture(image: Tensor, side: int = CELL) -> Image.Image:
    """``[3, h, w]`` in [0, 1] as a picture, small ones enlarged without smoothing."""
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels)
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


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _score(line: dict[str, Any], name: str) -> str:
    low, high = line[f"{name}_interval"]
    return f"{100 * line[name]:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _measures(line: dict[str, Any]) -> list[str]:
    energy = line.get("patch_energy")
    return [f"{line['soft']:.3f}", f"{line['background']:.4f}", "-" if energy is None else f"{energy:.1e}"]


def _row(title: str, line: dict[str, Any]) -> list[str]:
    loss = line.get("denoising_loss")
    return [title, _score(line, "strict"), *_measures(line), "-" if loss is None else f"{loss:.4f}"]


def table(first: dict[str, Any], last: dict[str, Any], difference: tuple[float, list[float]]) -> Table:
    """Before and after, with 95% intervals, and the base at its best guidance."""
    out = _table(f"Held-out prompts ({last['prompts']}), {last['steps']}-step ODE, average weights")
    for heading in ("", "strict [95%]", "soft", "background", "patch", "denoising"):
        out.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    out.add_row(*_row("before", first))
    guided = first.get("base_guided")
    if guided:
        out.add_row(*_row(f"at guidance {guided['guidance']:g}", guided))
    out.add_row(*_row(f"after {last['iteration']}", last), style="bold")
    mean, (low, high) = difference
    out.add_section()
    judges = ("background", "patch_energy", "denoising_loss")
    pairs = [(first.get(name), last.get(name)) for name in judges]
    out.add_row(
        "paired",
        f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{last['soft'] - first['soft']:+.3f}",
        *(f"x {after / before:.2f}" if before and after is not None else "-" for before, after in pairs),
    )
    return out


def save_picture(page: Image.Image, file: Path, info: PngInfo | None = None) -> None:
    """Write a PNG, and what it says of itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file, pnginfo=info)


def summary(line: dict[str, Any]) -> Table:
    """One evaluation, by category."""
    told = "no guidance" if line["guidance"] == 1 else f"guidance {line['guidance']:g}"
    out = _table(f"Held-out prompts ({line['prompts']}), {line['steps']}-step {line['sampler']['kind']}, {told}")
    for heading in ("", "prompts", "strict", "soft", "background", "patch"):
        out.add_column(heading, justify="right" if heading else "left")
    for kind, scores in line["by_kind"].items():
        out.add_row(kind, str(scores["prompts"]), f"{100 * scores['strict']:.1f}%", *_measures(scores))
    out.add_section()
    out.add_row("all", str(line["prompts"]), _score(line, "strict"), *_measures(line))
    out.caption = f"denoising loss {line['denoising_loss']:.4f}"
    return out


def show_recipe(
    console: Console, name: str, settings: dict[str, Any], steps: Sequence[dict[str, Any]], costs: dict[str, Any]
) -> None:
    """A recipe in full on the terminal."""
    console.print(f"# {name}\n{tomli_w.dumps(settings)}", markup=False, highlight=False)
    if steps:
        out = Table(title="Steps of the first iteration")
        for heading in ("step", "t", "sigma", "sigma'", "gain", "std", ""):
            out.add_column(heading, justify="right")
        for row in steps:
            numbers = (f"{row[key]:.4f}" for key in ("sigma", "sigma_next", "gain", "std"))
            out.add_row(str(row["step"]), f"{row['t']:.4g}", *numbers, "noisy, trained" if row["noisy"] else "")
        console.print(out)
    for key, value in costs.items():
        console.print(f"{key.replace('_', ' '):24}{value:>10}", highlight=False)
