"""``grpaint show``: print a recipe's settings, steps, batches and costs without opening weights."""

import json
from typing import Any

from grpaint.recipe.config import DEFAULT, Recipe, open_recipe, stage_of
from grpaint.recipe.costs import costs, gradient_bytes, step_table
from grpaint.recipe.pieces import model_description
from grpaint.recipe.trust import recipe_origin
from grpaint.report.console import Terminal, echo
from grpaint.report.terminal import print_processes, print_recipe
from grpaint.run.shares import divide_rows


def show(name: str | None, sets: list[str], *, as_json: bool, trust: bool, processes: int | None = None) -> None:
    """Print a recipe in full; ``name`` None means the default recipe. ``trust``: a run's own recipe may name code.

    ``processes``: also print how so many would divide an iteration.

    Raises:
        ConfigError: the recipe cannot be opened, or so many processes cannot divide it.
    """
    name = DEFAULT["train"] if name is None else name
    with recipe_origin(name, trust=trust).guard(sets):
        recipe, settings = open_recipe(name, stage_of(name), sets)
        about, steps, numbers = model_description(recipe.model), step_table(recipe), costs(recipe)
        division = _division(recipe, processes) if processes else {}
    if as_json:
        output = {"settings": settings, "model": about, "steps": steps, "costs": numbers}
        echo(json.dumps(output | ({"processes": division} if division else {})))
        return
    if about:
        echo(f"model  {about}")
    print_recipe(Terminal(), name, settings, steps, numbers)
    if division:
        print_processes(Terminal(), division)


def _division(recipe: Recipe, processes: int) -> dict[str, Any]:
    size = gradient_bytes(recipe)
    return divide_rows(recipe, processes) | ({} if size is None else {"gradient_bytes": size})
