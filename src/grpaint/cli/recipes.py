"""Commands that print what there is."""

import json
from typing import Annotated, Any

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, RecipeName, Sets


@app.command()
def show(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """A recipe in full: its settings, its steps, its batches and what an iteration costs. Opens no weights."""
    from rich.console import Console

    from grpaint.recipe.config import DEFAULT, open_recipe, stage_of
    from grpaint.recipe.costs import costs, step_table
    from grpaint.recipe.pieces import described
    from grpaint.report.terminal import show_recipe

    name = recipe or DEFAULT["train"]
    loaded, settings = open_recipe(name, stage_of(name), sets or [])
    about = described(loaded.model)
    if as_json:
        said = {"settings": settings, "model": about, "steps": step_table(loaded), "costs": costs(loaded)}
        typer.echo(json.dumps(said))
    else:
        if about:
            typer.echo(f"model  {about}")
        show_recipe(Console(), name, settings, step_table(loaded), costs(loaded))


@app.command()
def plan(
    recipe: RecipeName = None,
    gpu: Annotated[
        str | None, typer.Option(help="Memory of a GPU, as 24GB or 24GiB: does it fit, or what to do?")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Open the weights, and measure the time.")] = False,
    as_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """What a recipe will need: memory by phase, model evaluations, disk, time. Opens no weights."""
    from grpaint.commands.estimate import calibrate as measure
    from grpaint.commands.estimate import forecast, levers, page
    from grpaint.commands.estimate.forecast import amount
    from grpaint.recipe.config import DEFAULT, locate, override, read_toml, stage_of

    name = recipe or DEFAULT["train"]
    table, stage, limit = override(read_toml(locate(name)), sets or []), stage_of(name), amount(gpu) if gpu else 0
    device: Any = "cuda" if gpu else None
    said = forecast(table, stage, device)
    times = measure(said) if calibrate else None
    fits = not limit or said.fits(limit)
    pulls = [] if fits else list(levers(table, stage, said, limit=limit, device=device))
    ends = fits or (bool(pulls) and pulls[-1].forecast.fits(limit))
    if as_json:
        plain = (
            said.plain() | ({"limit": limit, "fits": fits} if limit else {}) | ({"times": vars(times)} if times else {})
        )
        typer.echo(json.dumps(plain | {"levers": [{"sets": p.sets, "peak": p.forecast.peak} for p in pulls]}))
        return
    for line in page.lines(said, times):
        typer.echo(line)
    if limit:
        typer.echo(
            f"{page.gib(limit)} GiB: " + ("fits" if fits else "does not fit. The peak after each of, in this order:")
        )
        for line in page.pulled(pulls):
            typer.echo(line)
        if not ends:
            typer.echo("  and that is not enough: take a smaller model")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, recipes, models, rewards or samplers")] = "methods",
    as_json: AsJson = False,
) -> None:
    """What there is by name."""
    from grpaint.recipe.listing import TOPICS, listing

    if what not in TOPICS:
        from grpaint.core.errors import ConfigError

        raise ConfigError(f"list {what}: no such list. There are: {', '.join(TOPICS)}.")
    found = listing(what)
    width = max(map(len, found)) + 2
    typer.echo(
        json.dumps(found) if as_json else "\n".join(f"{name:<{width}}{about}".rstrip() for name, about in found.items())
    )
