"""Recipes: find and read a TOML file, apply ``--set``, and build one frozen object that is checked as a whole."""

import copy
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from grpaint.core.bounds import check_range
from grpaint.core.errors import ConfigError
from grpaint.core.reward import RewardBase, WeightSource
from grpaint.core.runtime import Device, Precision
from grpaint.learn.advantage import Advantage, PerReward
from grpaint.learn.forward import ForwardObjective
from grpaint.learn.objective import Anchor, Denoising, Objective, PolicyGradient
from grpaint.learn.table import RewardSet
from grpaint.measures.hacking import Watch
from grpaint.recipe.build import Plain, build, dump
from grpaint.recipe.catalog import did_you_mean
from grpaint.recipe.optim import Behaviour
from grpaint.recipe.pieces import Data, Logger, ModelSpec, WeightedReward
from grpaint.recipe.settings import Checkpoints, Evaluation, Measuring, SftTraining, Training
from grpaint.rollout.rollout import Plan
from grpaint.rollout.start import Reference
from grpaint.storage.reading import read_toml

RECIPES = Path(__file__).parent.parent / "recipes"
MOST_THREADS = 1024
DEFAULT = {"train": "scenes/awm", "sft": "scenes/sft"}
WORLD_OF = {"ddpo": "scenes-epsilon", "sft-flow-grpo": "scenes-epsilon"}  # every other bare name means scenes


@dataclass(frozen=True, kw_only=True)
class Common:
    """The tables and settings that both stages share; ``threads``: 0 leaves the number to PyTorch."""

    model: ModelSpec
    data: Data
    evaluate: Evaluation = field(default_factory=Evaluation)
    measure: Measuring = field(default_factory=Measuring)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    loggers: dict[str, Logger] = field(default_factory=dict)
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        check_range(self, 0, MOST_THREADS, "threads")


@dataclass(frozen=True, kw_only=True)
class SftRecipe(Common):
    """The recipe of a supervised stage."""

    stage: Literal["sft"] = "sft"
    train: SftTraining
    objective: Denoising

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_captioned(self.data, "stage")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Common):
    """The recipe of a reinforcement-learning stage; constraints between its tables are checked when it is built."""

    stage: Literal["train"] = "train"
    plan: Plan
    rewards: dict[str, WeightedReward]
    advantage: Advantage = field(default_factory=PerReward)
    objective: Objective = field(default_factory=PolicyGradient)
    anchor: Anchor | None = None
    behaviour: Behaviour | None = None
    watch: Watch = field(default_factory=Watch)
    train: Training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise ValueError("rewards must name at least one reward: [rewards.NAME] kind = ...")
        if getattr(self.advantage, "needs_group", True) and self.train.group_size < 2:
            raise ValueError(
                f"train.group_size = {self.train.group_size}: advantages relative to the group need 2 or more images a "
                'prompt; raise it, or use advantage = { kind = "batch" }'
            )
        if not any(item.weight for item in self.rewards.values()):
            raise ValueError("rewards: every weight is 0, so nothing can be learned; raise one")
        if self.plan.steps < 1:
            raise ValueError(f"plan.steps must be at least 1, got {self.plan.steps}")
        _prefix("plan.window", self.plan.window.check, self.plan.steps)
        _prefix("plan", self.plan.check, self.model.path, self.train.group_size)
        likelihood = self.objective if isinstance(self.objective, PolicyGradient) else None
        if likelihood and not self.plan.window.reach(self.plan.steps):
            raise ValueError(
                "plan.window: no step is noisy, and a policy gradient needs a likelihood; choose another window"
            )
        if self.train.retain and (not likelihood or likelihood.minibatch):
            raise ValueError("train.retain is for a policy gradient without minibatches: one graph a step; unset one")
        if self.train.retain and self.plan.weights != "current":
            raise ValueError(
                "train.retain keeps the graphs of the weights that sample, and those of plan.weights = "
                f'"{self.plan.weights}" are not those that learn; unset one'
            )
        if getattr(self.advantage, "needs_previews", False) and not (self.plan.previews and likelihood):
            raise ValueError(
                "advantage: step-aware advantages credit a policy gradient's steps with later previews; set "
                'plan.previews = true and objective.kind = "policy-gradient"'
            )
        if isinstance(self.objective, ForwardObjective):
            self.objective.check(self.plan)
        if (self.plan.weights == "behaviour") != bool(self.behaviour):
            raise ValueError('plan.weights = "behaviour" and a [behaviour] table go together: give both or neither')
        if self.anchor:
            _check_captioned(self.data, "anchor")
        self._check_references()
        self._check_updates()

    def _check_updates(self) -> None:
        survivors = self.plan.prune.keep[-1] if self.plan.prune and self.plan.prune.keep else self.train.group_size
        if self.train.updates > self.train.prompts * survivors:
            raise ValueError(
                f"train.updates = {self.train.updates}: must not exceed train.prompts x the images that a group keeps "
                f"= {self.train.prompts * survivors}"
            )

    def _check_references(self) -> None:
        referenced = isinstance(self.plan.start, Reference)
        for name, item in self.rewards.items():
            if getattr(item.reward, "needs_reference", False) and not referenced:
                raise ValueError(f'rewards.{name} needs rows that begin at a reference: plan.start.kind = "reference"')
        if referenced and not getattr(self.data, "references", True):
            raise ValueError('plan.start.kind = "reference" needs reference images: set data.references = true')
        side = getattr(self.data, "resolution", None)
        if referenced and side and self.model.pixels != (side, side):
            high, width = self.model.pixels
            raise ValueError(
                f"data.resolution = {side}: rows begin at references, and the model's images have {width} x {high} "
                "pixels; make them equal squares"
            )

    def reward_set(self) -> RewardSet:
        """Return the rewards with their current weights, floors included."""
        return RewardSet(
            {name: item.reward for name, item in self.rewards.items()},
            {name: item.weight_now for name, item in self.rewards.items()},
        )


def _prefix(key: str, check: Any, *values: Any) -> None:
    try:
        check(*values)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


def _check_captioned(data: Data, key: str) -> None:
    if not data.captioned:
        raise ValueError(f'{key} trains on captioned images, and this data has prompts alone; use data.kind = "images"')


Recipe = TrainRecipe | SftRecipe


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
                f'--set {item}: write it as key.sub=value, for example --set train.seed=1 or device="cpu".'
            )
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        pairs.append((key.strip().split("."), value))
    return pairs


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
                raise ConfigError(f"--set {'.'.join(path)}: {part} is a value, not a table of settings.")
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
        raise ConfigError(
            f'stage = "{own_stage}": this recipe is for `grpaint {own_stage}`, not for `grpaint {stage}`.'
        )
    return build(SftRecipe if stage == "sft" else TrainRecipe, table, "")


def open_recipe(name: str | None, stage: str, sets: Sequence[str] = ()) -> tuple[Recipe, Plain]:
    """Find and read a recipe, apply ``--set`` values, and build it; the stage's default if ``name`` is None.

    Raises:
        ConfigError: there is no such recipe, or it cannot run.
    """
    return resolve(override(read_toml(locate(name or DEFAULT[stage])), sets), stage)


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
        raise ConfigError(f'{name}: stage = "{stage}": not a stage. There are: sft, train.')
    return str(stage)
