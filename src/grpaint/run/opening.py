"""Open a recipe's model on a rank, as ``processes.shard`` says."""

from dataclasses import replace
from functools import partial

from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime, resolve
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe
from grpaint.recipe.pieces import Model, ModelSpec
from grpaint.recipe.recipe import check_shard
from grpaint.recipe.settings import Processes
from grpaint.recipe.trust import DrawingRecipe


def load_model(
    recipe: Recipe | DrawingRecipe,
    world: World = ONE,
    *,
    model: ModelSpec | None = None,
    runtime: Runtime | None = None,
) -> Model:
    """Open the model of a recipe, whose network the ranks of a machine divide if the recipe says so.

    Where its weights pass through the host's memory to a GPU, the ranks of a machine open it one after another.
    ``model`` and ``runtime`` take the place of the recipe's own.

    Raises:
        ConfigError, CheckpointError: it cannot be read.
    """
    if world.local_size > 1:
        try:
            check_shard(model or recipe.model, recipe.processes)
        except ValueError as error:
            raise ConfigError(f"{error}.") from error
    sharding = world.sharding((recipe.processes or Processes()).shard)
    runtime = replace(runtime or resolve(recipe.device, recipe.precision), sharding=sharding)
    load = partial((model or recipe.model).load, runtime)
    return load() if runtime.device == "cpu" else world.in_turn(load)
