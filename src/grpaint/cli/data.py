"""Commands about data: what is in it, what captions become, which prompts can be learned from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, RecipeName, Sets

if TYPE_CHECKING:
    from grpaint.images.data import ImageData

data = typer.Typer(no_args_is_help=True, help="Look at captioned images, resolve their captions, draw a set.")
prompts = typer.Typer(no_args_is_help=True, help="Look at prompts before training on them.")
app.add_typer(data, name="data")
app.add_typer(prompts, name="prompts")

Where = Annotated[
    str, typer.Argument(metavar="DIR|RECIPE", help="Captioned images, or a recipe that names them; --set data.*=..")
]


def _open(where: str, sets: list[str]) -> tuple["ImageData", dict[str, Any]]:
    """The data of a path or recipe, and how its captions are counted."""
    from grpaint.backends.counting import count_words, token_counts
    from grpaint.core.errors import ConfigError
    from grpaint.images.data import ImageData
    from grpaint.recipe.build import build
    from grpaint.recipe.config import open_recipe, override, stage_of
    from grpaint.recipe.pieces import Data

    if not where.endswith(".toml") and Path(where).exists():
        table = override({"data": {"kind": "images", "train": where}}, sets)
        found = build(Data, table["data"], "data")[0]
        counts: dict[str, Any] = {"words": count_words}
    else:
        recipe, _ = open_recipe(where, stage_of(where), sets)
        found, counts = recipe.data, token_counts(recipe.model)
    if not isinstance(found, ImageData):
        raise ConfigError(f'{where}: its data is not of kind "images"; for prompts there is `grpaint prompts scan`.')
    return found, counts


@data.command()
def scan(
    where: Where,
    sheet: Annotated[Path | None, typer.Option(help="Where a contact sheet goes, as .png.")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Count, measure and verify captioned images: sizes, captions, duplicates, bad files."""
    from grpaint.images.survey import contact_sheet, survey
    from grpaint.report.terminal import save_picture

    found, counts = _open(where, sets or [])
    said = survey(found, counts)
    if sheet:
        save_picture(contact_sheet([item for c in found.collections for item in c.captioned]), sheet)
    typer.echo(json.dumps(said) if as_json else _survey(said))
    if not said["captioned"]:
        raise typer.Exit(1)


def _survey(said: dict[str, Any]) -> str:
    lines = []
    for one in said["collections"]:
        lines.append(f"{one['path']}: {one['images']} images")
        lines += [f"  bad: {name}: {why}" for name, why in one["bad_files"].items()]
        lines += [f"  left out by tags: {count} {why}" for why, count in one["left_out_by_tags"].items()]
        lines += [f"  without a caption: {name}" for name in one["without_caption"]]
    lines.append(f"{said['captioned']} whole, wanted and captioned")
    if not said["captioned"]:
        return "\n".join(lines)
    for side, (low, middle, high) in said["sides"].items():
        lines.append(f"{side:<8}{low} to {high}, median {middle}")
    lines.append("buckets " + ", ".join(f"{size}: {count}" for size, count in said["buckets"].items()))
    for name, (low, middle, high) in said["captions"]["lengths"].items():
        lines.append(f"captions {low} to {high} {name}, median {middle}")
    lines.append(f"captions {said['captions']['different']} different ones")
    same = said["duplicates"]
    lines += [f"  the same bytes: {', '.join(names)}" for names in same["exact"]]
    lines += [f"  look alike: {one}, {other}" for one, other in same["near"]]
    lines.append(f"duplicates {len(same['exact'])} exact, {len(same['near'])} pairs that look alike")
    return "\n".join(lines)


@data.command()
def captions(
    where: Where,
    out: Annotated[Path, typer.Option(help="The file; a line an image, its name and a tab before the caption.")],
    draws: Annotated[int, typer.Option(min=0, help="Captions an image, shuffled and thinned as in training.")] = 0,
    sets: Sets = None,
) -> None:
    """Write the captions that training images end up with, to be read over."""
    from grpaint.images.survey import write_captions

    found, _ = _open(where, sets or [])
    typer.echo(f"{out}  {write_captions(found, out, draws)} captions of {len(found.training)} images")


@data.command()
def draw(
    out: Annotated[Path, typer.Option(help="The new folder.")],
    count: Annotated[int, typer.Option(min=1, help="Training pictures.")] = 1000,
    held_out: Annotated[int, typer.Option("--held-out", min=1, help="Pictures of compositions held out.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed draws the same set.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Pixels a side.")] = 32,
) -> None:
    """Draw a booru-style data set of scenes: pictures with tags by category, ratings and scores."""
    from grpaint.images.drawn import draw_set

    draw_set(out, count, held_out, seed, size, typer.echo)


@prompts.command(name="scan")
def scan_prompts(
    recipe: RecipeName = None,
    count: Annotated[int, typer.Option("--prompts", min=1, help="Prompts to sample a group of each.")] = 32,
    against: Annotated[
        str | None, typer.Option("--captions", metavar="RECIPE", help="The supervised stage's, to look for overlap.")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """The spread of rewards a prompt under the base model, dead prompts, near-duplicates, overlap with captions."""
    from grpaint.commands.prompt_scan import scan as look
    from grpaint.recipe.config import TrainRecipe, open_recipe

    loaded, _ = open_recipe(recipe, "train", sets or [])
    assert isinstance(loaded, TrainRecipe)
    known = open_recipe(against, "sft")[0].data if against else None
    said = look(loaded, known, count, lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(said) if as_json else _prompts(said))


def _prompts(said: dict[str, Any]) -> str:
    lines = [f"{'mean':>8} {'std':>8}  prompt"]
    for line in sorted(said["prompts"], key=lambda line: line["std"]):
        dead = f"  DEAD: {line['dead']}" if line["dead"] else ""
        lines.append(f"{line['mean']:8.3f} {line['std']:8.3f}  {line['prompt']}{dead}")
    lines.append(f"{said['dead']} of {len(said['prompts'])} prompts are dead: every image of a group scores alike")
    names = {
        "near_duplicates": "near-duplicates among these prompts",
        "held_out_in_training": "held-out prompts that training has, nearly",
        "training_in_captions": "of these prompts that the supervised stage had, nearly",
        "held_out_in_captions": "held-out prompts that the supervised stage had, nearly",
    }
    for key, about in names.items():
        if key in said:
            lines.append(f"{len(said[key])} {about}")
            lines += [f"  {one}  ~  {other}" for one, other, _ in said[key][:5]]
    return "\n".join(lines)
