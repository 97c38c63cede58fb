"""Commands that print what there is."""

from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, Division, RecipeName, Sets, Trust


@app.command()
def show(
    recipe: RecipeName = None,
    sets: Sets = None,
    processes: Division = None,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """A recipe in full: its settings, its steps, its batches and what an iteration costs. Opens no weights."""
    from grpaint.commands import show as command

    command.show(recipe, sets or [], as_json=as_json, trust=trust, processes=processes)


@app.command()
def plan(  # noqa: PLR0913 - reason: the options of the command
    recipe: RecipeName = None,
    gpu: Annotated[
        str | None, typer.Option(help="Memory of a GPU, as 24GB or 24GiB: does it fit, or what to do?")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Open the weights, and measure the time.")] = False,
    minutes: Annotated[float, typer.Option(min=0.01, max=1440, help="After which it says why it has no answer.")] = 1.0,
    processes: Annotated[int | None, typer.Option(min=1, max=1024, help="Also what one of so many needs.")] = None,
    nodes: Annotated[int, typer.Option(min=1, max=1024, help="The machines that have these processes.")] = 1,
    as_json: AsJson = False,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """What a recipe will need: memory by phase, model evaluations, disk, time. Opens no weights."""
    from grpaint.commands.estimate.command import run

    ranks = (processes, nodes) if processes else None
    run(recipe, sets or [], gpu, measure=calibrate, as_json=as_json, trust=trust, minutes=minutes, processes=ranks)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, recipes, models, rewards or samplers")] = "methods",
    as_json: AsJson = False,
) -> None:
    """What there is by name."""
    from grpaint.commands.listing import print_listing

    print_listing(what, as_json=as_json)
