"""``grpaint data``: scan captioned images, write the captions that training uses, or draw a data set."""

import json
from pathlib import Path
from typing import Any

from typer import Exit

from grpaint.backends.counting import count_words, token_counts
from grpaint.core.errors import ConfigError
from grpaint.images.data import ImageData
from grpaint.images.drawn import draw_set
from grpaint.images.survey import contact_sheet, survey, write_captions
from grpaint.recipe.build import build
from grpaint.recipe.config import open_recipe, override, stage_of
from grpaint.recipe.pieces import Data
from grpaint.recipe.trust import recipe_origin
from grpaint.report.console import echo, echo_lines
from grpaint.report.figures import save_picture


def open_image_data(place: str, sets: list[str], *, trust: bool) -> tuple[ImageData, dict[str, Any]]:
    """Open the data of a folder or recipe; return it with functions that count a caption's words or tokens, by unit.

    ``trust``: a run's own recipe may name code.

    Raises:
        ConfigError: the folder or recipe does not exist, or its data has no images.
    """
    if not place.endswith(".toml") and Path(place).exists():
        table = override({"data": {"kind": "images", "train": place}}, sets)
        data = build(Data, table["data"], "data")[0]
        counts: dict[str, Any] = {"words": count_words}
    elif not place.endswith(".toml") and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise ConfigError(f"{place}: no such file or folder, and no recipe either; name one of them.")
    else:
        with recipe_origin(place, trust=trust).guard(sets):
            recipe, _ = open_recipe(place, stage_of(place), sets)
            data, counts = recipe.data, token_counts(recipe.model)
    if not isinstance(data, ImageData):
        raise ConfigError(f'{place}: its data is not of kind "images"; for prompts there is `grpaint data prompts`.')
    return data, counts


def scan_images(place: str, sets: list[str], sheet: Path | None, *, as_json: bool, trust: bool) -> None:
    """Count, measure and verify captioned images and print a survey; exit with 1 if none can be trained on.

    ``sheet``: also save a contact sheet of the pictures there, as a PNG.

    Raises:
        ConfigError: the folder or recipe does not exist, its data has no images, or ``sheet`` does not end in .png.
    """
    if sheet and sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {sheet}: the contact sheet is a PNG; name a file that ends in .png.")
    data, counts = open_image_data(place, sets, trust=trust)
    summary = survey(data, counts)
    if sheet:
        save_picture(contact_sheet([item for c in data.collections for item in c.captioned]), sheet)
    echo_lines([json.dumps(summary)] if as_json else _survey_lines(summary))
    if not summary["captioned"]:
        raise Exit(1)


def _survey_lines(summary: dict[str, Any]) -> list[str]:
    """The summary of :func:`~grpaint.images.survey.survey` as lines for the terminal."""
    lines = []
    for collection in summary["collections"]:
        lines.append(f"{collection['path']}: {collection['images']} images")
        lines += [f"  left out: {name}: {reason}" for name, reason in collection["left_out_files"].items()]
        lines += [f"  left out by tags: {count} {reason}" for reason, count in collection["left_out_by_tags"].items()]
        lines += [f"  without a caption: {name}" for name in collection["without_caption"]]
    lines.append(f"{summary['captioned']} whole, wanted and captioned")
    if not summary["captioned"]:
        return lines
    for side, (low, median, high) in summary["sides"].items():
        lines.append(f"{side:<8}{low} to {high}, median {median}")
    lines.append("buckets " + ", ".join(f"{size}: {count}" for size, count in summary["buckets"].items()))
    for counter, (low, median, high) in summary["captions"]["lengths"].items():
        unit = counter if counter == "words" else f"tokens of {counter}"
        lines.append(f"captions {low} to {high} {unit}, median {median}")
    lines.append(f"captions {summary['captions']['different']} different ones")
    duplicates = summary["duplicates"]
    lines += [f"  the same bytes: {', '.join(names)}" for names in duplicates["exact"]]
    lines += [f"  look alike: {name}, {other}" for name, other in duplicates["near"]]
    lines.append(f"duplicates {len(duplicates['exact'])} exact, {len(duplicates['near'])} pairs that look alike")
    return lines


def save_captions(place: str, sets: list[str], out: Path, draws: int, *, trust: bool) -> None:
    """Write to ``out`` every training image's caption, and ``draws`` random variants of it by shuffling and dropout."""
    data, _ = open_image_data(place, sets, trust=trust)
    echo(f"{out}  {write_captions(data, out, draws)} captions of {len(data.training)} images")


def draw_data_set(out: Path, count: int, held_out: int, seed: int, side: int) -> None:
    """Draw ``count`` training and ``held_out`` held-out pictures of scenes, ``side`` pixels square, with booru tags."""
    draw_set(out, count, held_out, seed, side, echo)
