"""Recipes: find and read a TOML file, apply ``--set``, and build one frozen object that is checked as a whole."""

import copy
import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from grpaint.core.errors import ConfigError
from grpaint.core.reward import RewardBase, WeightSource
from grpaint.recipe.build import Plain, build, dump
from grpaint.recipe.catalog import did_you_mean
from grpaint.recipe.pieces import WeightedReward
from grpaint.recipe.recipe import Recipe, SftRecipe, TrainRecipe
from grpaint.recipe.scalars import short
from grpaint.storage.reading import MOST_DEPTH, parse_toml, read_toml

__all__ = ["Plain", "Recipe", "SftRecipe", "TrainRecipe", "read_toml"]  # also from here

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT = {"train": "scenes/awm", "sft": "scenes/sft"}
WORLD_OF = {"ddpo": "scenes-epsilon", "sft-flow-grpo": "scenes-epsilon"}  # every other bare name means scenes


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, as WORLD/METHOD."""
    return sorted(str(file.relative_to(RECIPES).with_suffix("")) for file in RECIPES.glob("*/*.toml"))


def locate(name: str) -> Path:
    """Return the file of a RECIPE argument: a path, WORLD/METHOD, or a METHOD alone.

    Raises:
        ConfigError: there is no such recipe or file.
    """
    if name.endswith(".toml"):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"recipe {name}: no such file.")
    full = name if "/" in name else f"{WORLD_OF.get(name, 'scenes')}/{name}"
    packaged = recipe_names()
    if full not in packaged:
        methods = [recipe.partition("/")[2] for recipe in packaged]
        hint = did_you_mean(full, packaged) or did_you_mean(name, methods)
        raise ConfigError(
            f'recipe "{name}": no such recipe.{hint} There are: {", ".join(packaged)}; or a path to a .toml.'
        )
    return RECIPES / f"{full}.toml"


def parse_sets(sets: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Split ``key.sub=value`` arguments into paths and values; a value that is not TOML is a string."""
    pairs = []
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f'--set {item:.80}: write it as key.sub=value, for example --set train.seed=1 or device="cpu".'
            )
        path = key.strip().split(".")
        if len(path) > MOST_DEPTH:
            raise ConfigError(f"--set {key:.80}..: a key of more than {MOST_DEPTH} parts; no setting has so many.")
        pairs.append((path, _set_value(key.strip()[:80], text)))
    return pairs


def _set_value(key: str, text: str) -> Any:
    try:
        return parse_toml(f"v = {text}", f"--set {key}")["v"]
    except ConfigError as error:
        if isinstance(error.__cause__, tomllib.TOMLDecodeError):
            return text.strip()
        raise


def override(table: Plain, sets: Sequence[str]) -> Plain:
    """Return ``table`` with ``--set`` values applied. A new ``kind`` drops the settings of the old kind.

    Kinds are applied first, outer before inner, so that a new kind does not drop what other ``--set`` values give.
    """
    changed = copy.deepcopy(table)
    for path, value in sorted(parse_sets(sets), key=lambda item: len(item[0]) if item[0][-1] == "kind" else math.inf):
        node = changed
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {'.'.join(path):.80}: {part:.80} is a value, not a table of settings.")
        if path[-1] == "kind" and node.get("kind") != value:
            node.clear()
        node[path[-1]] = value
    return changed


def resolve(table: Plain, stage: str) -> tuple[Recipe, Plain]:
    """Build a recipe's table; return the recipe, and the complete table, defaults included, for run.toml.

    Raises:
        ConfigError: a setting is wrong, or settings cannot go together.
    """
    own_stage = table.get("stage", "train")
    if own_stage != stage:
        other = short(own_stage).strip("'")
        raise ConfigError(
            f'stage = "{other}": this recipe is for `grpaint {other}`; this command takes one with stage = "{stage}".'
        )
    return build(SftRecipe if stage == "sft" else TrainRecipe, table, "")


def open_recipe(name: str | None, stage: str, sets: Sequence[str] = ()) -> tuple[Recipe, Plain]:
    """Find and read a recipe, apply ``--set`` values, and build it; the stage's default if ``name`` is None.

    Raises:
        ConfigError: there is no such recipe, or it cannot run.
    """
    return resolve(override(read_toml(locate(DEFAULT[stage] if name is None else name)), sets), stage)


def pin_commits(recipe: Recipe, settings: Plain) -> tuple[Recipe, Plain]:
    """Return the recipe and its table with the current commit added to the model's hub ids."""
    pin = getattr(recipe.model, "pinned", None)
    if not pin:
        return recipe, settings
    model = pin()
    return replace(recipe, model=model), settings | {"model": dump(model)}


def keep_commits(table: Plain, settings: Plain) -> Plain:
    """Return ``table`` with the hub commits of a run's ``settings``, if both name the same repositories."""
    model, before = dict(table.get("model", {})), settings.get("model", {})
    for key in ("base", "config"):
        if key in model and model[key] == str(before.get(key, "")).partition("@")[0]:
            model[key] = before[key]
    return table | {"model": model}


def weights_of(table: Plain) -> list[tuple[str, WeightSource]]:
    """Return the weights that a recipe's rewards open, each with the key of its reward."""
    items, _ = build(dict[str, WeightedReward], table.get("rewards", {}), "rewards")
    rewards = {f"rewards.{name}": item.reward for name, item in items.items()}
    return [(key, s) for key, reward in rewards.items() if isinstance(reward, RewardBase) for s in reward.sources()]


def stage_of(name: str) -> str:
    """Return the stage of a recipe, "train" or "sft".

    Raises:
        ConfigError: there is no such recipe or stage.
    """
    stage = read_toml(locate(name)).get("stage", "train")
    if stage not in get_args(Literal["sft", "train"]):
        raise ConfigError(f"{name}: stage = {short(stage)}: not a stage. There are: sft, train.")
    return str(stage)
