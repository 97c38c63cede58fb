"""Commands about recipes before they run."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli import completion
from grpaint.cli.app import PREPARE, app, example
from grpaint.cli.options import AsJson, Division, Processes, RecipeName, Sets, Trust


@app.command(rich_help_panel=PREPARE, epilog=example("show mix-grpo --set plan.steps=10"))
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


@app.command(rich_help_panel=PREPARE, epilog=example("plan sdxl/awm --gpu 24GB --set data.train=prompts.txt"))
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


@app.command(rich_help_panel=PREPARE, epilog=example("doctor ssd-1b/awm --set data.train=prompts.txt"))
def doctor(
    recipe: RecipeName = None,
    sets: Sets = None,
    as_json: AsJson = False,
    trust: Trust = False,
    processes: Processes = None,
) -> None:
    """Check a recipe on this machine and model before it runs: PASS or FAIL, the likely cause and the fix.

    With --processes also that many processes give the numbers of one.
    """
    from grpaint.commands.doctor.command import run
    from grpaint.commands.processes import examining_processes, run_in_processes

    if not run_in_processes(processes, 0, lambda: examining_processes(recipe, sets or [], trust=trust)):
        run(recipe, sets or [], as_json=as_json, trust=trust)


@app.command(rich_help_panel=PREPARE, epilog=example("fetch ssd-1b/awm --to weights --dry-run"))
def fetch(
    recipe: Annotated[str, typer.Argument(help="A path, WORLD/METHOD, or METHOD.", autocompletion=completion.recipes)],
    to: Annotated[Path, typer.Option(help="Where the files go.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """Download every file that a recipe needs, with sizes and hashes; nothing else needs a network."""
    from grpaint.commands import fetch as command

    command.fetch(recipe, sets or [], to, dry_run=dry_run, trust=trust)


@app.command(name="list", rich_help_panel=PREPARE, epilog=example("list rewards"))
def list_(
    what: Annotated[str, typer.Argument(help="methods, recipes, models, rewards or samplers")] = "methods",
    as_json: AsJson = False,
) -> None:
    """What there is by name."""
    from grpaint.commands.listing import print_listing

    print_listing(what, as_json=as_json)
