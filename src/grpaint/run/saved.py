"""Open what a run has saved: its model, from a run, a checkpoint or a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import locate
from grpaint.recipe.pieces import Model
from grpaint.recipe.trust import (
    DrawingRecipe,
    JudgingRecipe,
    Origin,
    R,
    check_keys,
    foreign_rewards,
    left_out_lines,
    take,
    without_rewards,
)
from grpaint.run.folder import find_checkpoint, find_run
from grpaint.run.opening import load_model
from grpaint.run.state import check_model
from grpaint.storage.files import read_weights, unflatten
from grpaint.storage.reading import parse_object, read_toml


class SavedModel(NamedTuple):
    """The weight file of a run, checkpoint or export, and the settings that belong to it, with their file."""

    file: Path
    settings: dict[str, Any]
    origin: Origin

    def recipe(self, tables: type[R], sets: Sequence[str] = ()) -> R:
        """Build the tables that a command needs.

        Raises:
            ConfigError: a setting is wrong, or names code and the file is not trusted.
        """
        return take(tables, self.settings, self.origin, sets)

    def with_evaluation(self, evaluate: dict[str, Any]) -> "SavedModel":
        """Return the same model with other settings of ``[evaluate]``; those that are not in ``evaluate`` stay."""
        before = self.settings.get("evaluate")
        merged = {**before, **evaluate} if isinstance(before, dict) else evaluate
        return self._replace(settings={**self.settings, "evaluate": merged})

    def without_deployment(self) -> "SavedModel":
        """Return the same model without ``[deploy]``."""
        return self._replace(settings={key: value for key, value in self.settings.items() if key != "deploy"})

    def judging(self, sets: Sequence[str] = ()) -> tuple[JudgingRecipe, list[str]]:
        """Build the tables by which the model is judged; rewards that would run code, unless trusted, are left out.

        Returns them, and a line for each reward that is left out.

        Raises:
            ConfigError: a setting is wrong, or another table names code, or nothing is left to judge by.
        """
        effects = foreign_rewards(self.settings, self.origin)
        lines = left_out_lines(effects, self.origin)
        recipe = take(JudgingRecipe, without_rewards(self.settings, effects), self.origin, sets)
        if lines and not (recipe.rewards or recipe.measure.rewards or recipe.data.captioned):
            raise ConfigError(f"{lines[0]} Nothing else is there to judge by.")
        return recipe, lines

    def open(self, recipe: DrawingRecipe, world: World = ONE) -> Model:
        """Open the model, as the recipe says that the processes of ``world`` divide it.

        Raises:
            ConfigError, CheckpointError: the weights, or those of its base, cannot be read.
        """
        check_model(self.file)
        if recipe.evaluate.tuned_share == 1:
            return load_model(recipe, world, model=recipe.model.from_file(str(self.file)))
        training = self.file.parent / "training.safetensors"
        if not training.is_file():
            raise ConfigError(
                f"evaluate.tuned_share = {recipe.evaluate.tuned_share}: the base takes the other steps, and "
                f"{self.file} does not hold it; name a run or one of its checkpoint folders."
            )
        policy = load_model(recipe, world)
        policy.weights.load(unflatten(read_weights(training)[0]))
        return policy


def find_model(source: str, *, trust: bool = False) -> SavedModel:
    """Find the model of a run, checkpoint, export or file; ``trust``: its settings may name code.

    Raises:
        ConfigError, CheckpointError: there is none, or it cannot be read.
    """
    file = find_checkpoint(source)
    if run := find_run(file):
        return SavedModel(file, run.settings(), Origin(run.path / "run.toml", trust))
    header, origin = read_weights(file)[1], Origin(file, trust)
    if "grpaint" in header:
        return SavedModel(file, _from_header(header["grpaint"], origin), origin)
    epsilon = header.get("parametrisation") == "epsilon"
    return SavedModel(file, read_toml(locate("scenes-epsilon/sft" if epsilon else "scenes/sft")), origin)


def _from_header(text: str, origin: Origin) -> dict[str, Any]:
    """Return the model and evaluation tables in the header of an exported file, on the packaged ones."""
    recipe = parse_object(text, str(origin.file)).get("recipe")
    model = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(recipe, dict) or not isinstance(model, dict):
        raise CheckpointError(f"{origin.file}: its header does not say how to draw with it (no recipe.model in it).")
    taken = {key: recipe[key] for key in ("model", "evaluate", "deploy", "precision") if key in recipe}
    check_keys(recipe, taken, origin)
    model.pop("cache", None)  # a folder of the machine that wrote it
    return read_toml(locate("scenes/sft")) | taken


def open_model(source: str, sets: Sequence[str] = (), *, trust: bool = False) -> tuple[Model, DrawingRecipe]:
    """Open the model of a run, checkpoint or weight file; return it with the tables for drawing with it.

    Raises:
        ConfigError, CheckpointError: there is none, or it cannot be read.
    """
    saved = find_model(source, trust=trust)
    recipe = saved.recipe(DrawingRecipe, sets)
    return saved.open(recipe), recipe
