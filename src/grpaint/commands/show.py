"""``grpaint show``: print a recipe's settings, steps, batches and costs without opening weights."""

import json

from grpaint.recipe.config import DEFAULT, open_recipe, stage_of
from grpaint.recipe.costs import costs, step_table
from grpaint.recipe.pieces import model_description
from grpaint.recipe.trust import recipe_origin
from grpaint.report.console import Terminal, echo
from grpaint.report.terminal import print_recipe


def show(name: str | None, sets: list[str], *, as_json: bool, trust: bool) -> None:
    """Print a recipe in full; ``name`` None means the default recipe. ``trust``: a run's own recipe may name code."""
    name = DEFAULT["train"] if name is None else name
    with recipe_origin(name, trust=trust).guard(sets):
        recipe, settings = open_recipe(name, stage_of(name), sets)
        about, steps, numbers = model_description(recipe.model), step_table(recipe), costs(recipe)
    if as_json:
        echo(json.dumps({"settings": settings, "model": about, "steps": steps, "costs": numbers}))
        return
    if about:
        echo(f"model  {about}")
    print_recipe(Terminal(), name, settings, steps, numbers)
