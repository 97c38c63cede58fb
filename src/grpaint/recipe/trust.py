"""Settings from a file that the user did not type: they are data, unless the user trusts the file.

A recipe that the user types is the user's own, and so is a run that ``--resume`` continues: they may name code. A run
folder that a command only reads, the header of a weight file and the metadata of a picture may not. Only the tables
that a command needs are taken from them, and they are built while nothing of a user's own can be imported (see
:func:`grpaint.core.importing.data_only`).
"""

import copy
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from grpaint.core.errors import ConfigError
from grpaint.core.importing import ForeignCode, data_only
from grpaint.core.policy import ExternalReward, Reward
from grpaint.core.runtime import Device, Precision
from grpaint.learn.objective import Objective
from grpaint.measures.hacking import Watch
from grpaint.recipe.build import Plain, build
from grpaint.recipe.catalog import CATALOG, did_you_mean, find_piece
from grpaint.recipe.config import locate, override, parse_sets
from grpaint.recipe.deployment import Deployable, Deployment
from grpaint.recipe.pieces import Data, ModelSpec, WeightedReward
from grpaint.recipe.recipe import SftRecipe, TrainRecipe, check_evaluation, check_images
from grpaint.recipe.settings import Evaluation, Measuring, Processes, Training
from grpaint.rollout.rollout import Plan

KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class DrawingRecipe(Deployable):
    """The tables that a command needs to draw with a saved model."""

    model: ModelSpec
    evaluate: Evaluation = field(default_factory=Evaluation)
    deploy: Deployment | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    processes: Processes | None = None

    def __post_init__(self) -> None:
        check_evaluation(self.evaluate, self.deploy, self.model)


@dataclass(frozen=True, kw_only=True)
class JudgingRecipe(DrawingRecipe):
    """The tables by which a saved model is judged."""

    data: Data
    measure: Measuring = field(default_factory=Measuring)
    rewards: dict[str, WeightedReward] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_images(self.data, self.model)


@dataclass(frozen=True, kw_only=True)
class ExaminedRecipe(DrawingRecipe):
    """The tables that the checks of ``grpaint doctor`` look at."""

    data: Data
    plan: Plan
    train: Training
    objective: Objective


R = TypeVar("R", bound=DrawingRecipe)


class Origin(NamedTuple):
    """The file that settings come from, and whether the user trusts it."""

    file: Path
    trusted: bool = False

    def guard(self, sets: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Within the block, import nothing that only the file names, unless it is trusted; ``sets`` are the user's."""
        return nullcontext() if self.trusted else data_only(self.file, set(_texts([v for _, v in parse_sets(sets)])))


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in nested tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def take(recipe: type[R], table: Plain, origin: Origin, sets: Sequence[str] = ()) -> R:
    """Build the tables of ``recipe`` from settings that a file brings, changed by the user's ``--set`` items.

    Raises:
        ConfigError: a setting is wrong or unknown, or names code that the user neither typed nor trusts.
    """
    fields = {item.name for item in dataclasses.fields(recipe)}
    taken = {key: value for key, value in table.items() if key in fields}
    check_keys(table, fields, origin)
    with origin.guard(sets):
        built: R = build(recipe, override(taken, sets), "")[0]
    return built


def check_keys(table: Plain, taken: Collection[str], origin: Origin) -> None:
    """Refuse tables that no recipe has, and keys in the tables ``taken`` that are no names; trusted ones pass.

    Raises:
        ConfigError: with the first such key.
    """
    if origin.trusted:
        return
    known = sorted({item.name for stage in (SftRecipe, TrainRecipe) for item in dataclasses.fields(stage)})
    for key in sorted(table.keys() - set(known)):
        raise ConfigError(f"{origin.file}: {key!r:.60}: no such setting.{did_you_mean(key, known)}")
    for key in _keys({name: value for name, value in table.items() if name in taken}):
        if not KEY.fullmatch(key):
            raise ConfigError(f"{origin.file}: {key!r:.60} is no key; keys are of letters, digits, _ and -.")


def _keys(value: Any) -> Iterator[str]:
    """Yield every key in nested tables and lists."""
    if isinstance(value, Mapping):
        yield from value
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(item)


REWARD_TABLES = (("rewards",), WeightedReward), (("measure", "rewards"), Reward)


def foreign_rewards(table: Plain, origin: Origin) -> dict[str, str]:
    """Return, by its key, what each reward does besides computing: run code, start a program or open a connection.

    There are none if ``origin`` is trusted.
    """
    effects = {}
    for path, hint in () if origin.trusted else REWARD_TABLES:
        key = ".".join(path)
        for name, settings in _table_at(table, path).items():
            if effect := _effect(hint, settings, f"{key}.{name}", origin):
                effects[f"{key}.{name}"] = effect
    return effects


def check_rewards(table: Plain, origin: Origin) -> None:
    """Refuse rewards that do more than compute, for a command that would call them.

    Raises:
        ConfigError: the first of them, with what it would do.
    """
    for key, effect in foreign_rewards(table, origin).items():
        raise ConfigError(
            f"{origin.file}: {key}: {effect}. If you trust who made the file, repeat the command with --trust."
        )


def without_rewards(table: Plain, keys: Collection[str]) -> Plain:
    """Return the table without the rewards of these keys, such as "rewards.mine" or "measure.rewards.mine"."""
    table = copy.deepcopy(table)
    for path, _ in REWARD_TABLES:
        rewards = _table_at(table, path)
        for name in [name for name in rewards if ".".join((*path, name)) in keys]:
            del rewards[name]
    return table


def left_out_lines(effects: Mapping[str, str], origin: Origin) -> list[str]:
    """Return a line for each of the rewards that are left out, for standard error."""
    return [f"{origin.file}: {key} is left out: {effect}; --trust takes it." for key, effect in effects.items()]


def _table_at(table: Any, path: Sequence[str]) -> dict[str, Any]:
    """Return a nested table; an empty one where there is none, which is refused when it is built."""
    for part in path:
        table = table.get(part) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def _effect(hint: Any, settings: Any, key: str, origin: Origin) -> str:
    """Return what a reward of a file does besides computing; empty if that is nothing."""
    kind = settings.get("kind") if isinstance(settings, dict) else None
    packaged = isinstance(kind, str) and kind in CATALOG["rewards"]
    if packaged and issubclass(find_piece("rewards", str(kind), key), ExternalReward):
        return f'kind = "{kind}" would start a program or open a connection'
    try:
        with origin.guard():
            build(hint, settings, key)
    except ForeignCode as error:
        return f'would run "{error.target}"'
    except ConfigError:
        return ""  # refused for this reason when it is built
    return ""


def recipe_origin(name: str, *, trust: bool) -> Origin:
    """Tell where a RECIPE argument comes from: a run's own run.toml is trusted if ``trust``, any other recipe always.

    Raises:
        ConfigError: there is no such recipe.
    """
    file = locate(name)
    return Origin(file, trusted=trust or not (file.resolve().parent / "run.toml").is_file())
