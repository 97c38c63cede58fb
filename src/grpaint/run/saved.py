"""Open what a run has saved: its model from a run, checkpoint or file; check the settings with which it resumes."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.recipe.config import Recipe, locate, override, resolve
from grpaint.recipe.pieces import Model
from grpaint.run.folder import find_checkpoint
from grpaint.run.state import check_model
from grpaint.storage.files import read_weights, unflatten
from grpaint.storage.reading import read_toml

# Besides the length of a run --resume may change how a reward in another process is reached, which changes no score,
# and how work is split into parts, which changes gradients by rounding alone.
CHANGEABLE_ON_RESUME = (
    r"train\.overlap|rewards\.[^.]+\."
    "(urls?|token_env|timeout_s|start_s|retries|restarts|backoff_s|concurrency|python)"
    r"|model\.(batch|vae_batch|checkpointing)|objective\.minibatch|anchor\.loss\.minibatch"
)


def check_resume(subject: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings, but for a greater length and :data:`CHANGEABLE_ON_RESUME`.

    ``before`` are the settings of ``subject``, the run or its checkpoint; ``now`` are those of this command.

    Raises:
        ConfigError: another setting differs.
    """
    for key, old, new in _differences(before, now):
        if key in ("train.iterations", "train.evaluations") and isinstance(new, int) and _longer(old, new):
            continue
        if re.fullmatch(CHANGEABLE_ON_RESUME, key):
            continue
        raise ConfigError(
            f"{key} = {new!r}: {subject} has {old!r}; --resume repeats a run's settings (only larger "
            "train.iterations and train.evaluations, where rewards are found, and model.batch, model.vae_batch, "
            "model.checkpointing and minibatch may differ). Start another run with another --name."
        )


def _longer(old: int, new: int) -> bool:
    """Whether a limit is raised; 0 is no limit."""
    return new == 0 or 0 < old < new


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs, a changed ``kind`` first."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "kind", name)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def find_model(source: str) -> tuple[Path, dict[str, Any]]:
    """Return the weight file of a run, checkpoint, export or file, and the recipe's table that belongs to it.

    Raises:
        ConfigError, CheckpointError: there is none, or it cannot be read.
    """
    file = find_checkpoint(source)
    run = next((parent for parent in file.parents if (parent / "run.toml").is_file()), None)
    if run:
        return file, read_toml(run / "run.toml")
    header = read_weights(file)[1]
    if "grpaint" in header:
        return file, _from_header(file, header["grpaint"])
    epsilon = header.get("parametrisation") == "epsilon"
    return file, read_toml(locate("scenes-epsilon/sft" if epsilon else "scenes/sft"))


def _from_header(file: Path, text: str) -> dict[str, Any]:
    """Return the model and evaluation tables in the header of an exported file; a header may name no code."""
    try:
        recipe = json.loads(text)["recipe"]
        table = {key: recipe[key] for key in ("model", "evaluate", "precision") if key in recipe}
        table.get("model", {}).pop("cache", None)  # a folder of the machine that wrote it
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: its header does not say how to draw with it ({error}).") from error
    refuse_code(table, str(file))
    return override(read_toml(locate("scenes/sft")), []) | table


def refuse_code(table: Any, where: str) -> None:
    """Refuse settings read from a file whose ``kind`` or ``family`` names code.

    Raises:
        ConfigError: one is not the name of a packaged piece.
    """
    for key, value in table.items() if isinstance(table, dict) else ():
        if key in ("kind", "family") and ":" in str(value):
            raise ConfigError(
                f'{where}: asks for code, {key} = "{value}"; only names of grpaint\'s own are taken from a file.'
            )
        refuse_code(value, where)


def open_model(source: str, sets: Sequence[str] = ()) -> tuple[Model, Recipe]:
    """Open the model of a run, checkpoint or weight file, and the recipe by which it is judged.

    Raises:
        ConfigError, CheckpointError: there is none, or it cannot be read.
    """
    file, table = find_model(source)
    check_model(file)
    recipe, _ = resolve(override(table, sets), table.get("stage", "train"))
    runtime = resolve_runtime(recipe.device, recipe.precision)
    if recipe.evaluate.tuned_share == 1:
        return recipe.model.from_file(str(file)).load(runtime), recipe
    training = file.parent / "training.safetensors"
    if not training.is_file():
        raise ConfigError(
            f"evaluate.tuned_share = {recipe.evaluate.tuned_share}: the base takes the other steps, and {source} does "
            "not hold it; name a run or one of its checkpoint folders."
        )
    policy = recipe.model.load(runtime)
    policy.weights.load(unflatten(read_weights(training)[0]))
    return policy, recipe
