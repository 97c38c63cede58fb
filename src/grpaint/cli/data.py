"""Commands about data: what is in it, what captions become, which prompts can be learned from."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli.app import PREPARE, app, example, renamed
from grpaint.cli.options import AsJson, Processes, RecipeName, Sets, Trust

MOST_IMAGES, MOST_PROMPTS = 1_000_000, 100_000  # grpaint.core.bounds, which would import PyTorch
data = typer.Typer(no_args_is_help=True, help="Look at captioned images and prompts before training on them.")
app.add_typer(data, name="data", rich_help_panel=PREPARE)

Where = Annotated[
    str, typer.Argument(metavar="DIR|RECIPE", help="Captioned images, or a recipe that names them; --set data.*=..")
]


@data.command(epilog=example("data scan pictures --sheet sheet.png"))
def scan(
    where: Where,
    sheet: Annotated[Path | None, typer.Option(help="Where a contact sheet goes, as .png.")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """Count, measure and verify captioned images: sizes, captions, duplicates, bad files."""
    from grpaint.commands import data as command

    command.scan_images(where, sets or [], sheet, as_json=as_json, trust=trust)


@data.command(epilog=example("data captions pictures --out captions.txt --draws 3"))
def captions(
    where: Where,
    out: Annotated[Path, typer.Option(help="The file; a line an image, its name and a tab before the caption.")],
    draws: Annotated[
        int, typer.Option(min=0, max=1000, help="Captions an image, shuffled and thinned as in training.")
    ] = 0,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """Write the final captions of the training images to a file, for proofreading."""
    from grpaint.commands import data as command

    command.save_captions(where, sets or [], out, draws, trust=trust)


@data.command(epilog=example("data draw --out drawn --count 2000 --held-out 320"))
def draw(
    out: Annotated[Path, typer.Option(help="The new folder.")],
    count: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Training pictures.")] = 1000,
    held_out: Annotated[int, typer.Option("--held-out", min=1, max=MOST_IMAGES, help="Pictures held out.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed draws the same set.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Pixels a side.")] = 32,
) -> None:
    """Draw a booru-style data set of scenes: pictures with tags by category, ratings and scores."""
    from grpaint.commands import data as command

    command.draw_data_set(out, count, held_out, seed, size)


@data.command(epilog=example("data prompts examples/tagged-scenes/grpo.toml --prompts 24"))
def prompts(
    recipe: RecipeName = None,
    count: Annotated[
        int, typer.Option("--prompts", min=1, max=MOST_PROMPTS, help="Prompts to sample a group of each.")
    ] = 32,
    against: Annotated[
        str | None, typer.Option("--captions", metavar="RECIPE", help="The supervised stage's, to look for overlap.")
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
    trust: Trust = False,
    processes: Processes = None,
) -> None:
    """The spread of rewards a prompt under the base model, dead prompts, near-duplicates, overlap with captions."""
    from grpaint.commands.processes import examining_processes, run_in_processes
    from grpaint.commands.prompt_scan import run

    if not run_in_processes(processes, 0, lambda: examining_processes(recipe, sets or [], trust=trust, most=count)):
        run(recipe, sets or [], count, against, as_json=as_json, trust=trust)


old_prompts = typer.Typer()
old_prompts.command(name="scan")(renamed("prompts scan", "data prompts", prompts))
app.add_typer(old_prompts, name="prompts", hidden=True)
