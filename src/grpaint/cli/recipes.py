"""Commands that print what there is."""

import json
from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, RecipeName, Sets


@app.command()
def show(recipe: RecipeName = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """A recipe in full: its settings, its steps, its batches and what an iteration costs. Opens no weights."""
    from rich.console import Console

    from grpaint.run.config import DEFAULT, open_recipe, stage_of
    from grpaint.run.outlook import costs, step_table
    from grpaint.run.pieces import described
    from grpaint.run.report import show_recipe

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


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, recipes, models, rewards or samplers")] = "methods",
    as_json: AsJson = False,
) -> None:
    """What there is by name."""
    from grpaint.run.listing import TOPICS, listing

    if what not in TOPICS:
        from grpaint.core.errors import ConfigError

        raise ConfigError(f"list {what}: no such list. There are: {', '.join(TOPICS)}.")
    found = listing(what)
    width = max(map(len, found)) + 2
    typer.echo(
        json.dumps(found) if as_json else "\n".join(f"{name:<{width}}{about}".rstrip() for name, about in found.items())
    )
