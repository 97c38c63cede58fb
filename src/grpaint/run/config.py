"""Recipes: TOML in, one frozen object out, checked as a whole before any weight is opened."""

import copy
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from grpaint.backends.runtime import Device, Precision
from grpaint.core.errors import ConfigError
from grpaint.learn.advantage import Advantage, PerReward
from grpaint.learn.forward import Forward
from grpaint.learn.objective import Anchor, Denoising, Objective, PolicyGradient
from grpaint.learn.table import RewardSet
from grpaint.rollout.rollout import Plan
from grpaint.rollout.start import Reference
from grpaint.run.build import Plain, build
from grpaint.run.catalog import did_you_mean
from grpaint.run.optim import Adamw, Behaviour, Schedule
from grpaint.run.pieces import Data, Logger, ModelSpec, Optimizer, WeightedReward

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT = {"train": "scenes/flow-grpo", "sft": "scenes/sft"}
WORLD_OF = {"ddpo": "scenes-epsilon", "sft-flow-grpo": "scenes-epsilon"}  # every other bare name means scenes


def _check(settings: object, low: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < low:
            raise ValueError(f"{name} must be at least {low:g}, got {value}")


@dataclass(frozen=True)
class Optimisation:
    """What both stages' ``[train]`` tables share."""

    iterations: int
    learning_rate: float
    seed: int = 0
    warmup: int = 0
    schedule: Schedule = "constant"
    max_grad_norm: float = 1.0
    ema: float = 0.9
    optimizer: Optimizer = field(default_factory=Adamw)

    def __post_init__(self) -> None:
        _check(self, 1, "iterations")
        _check(self, 0, "warmup", "seed")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class Training(Optimisation):
    """``[train]``: ``prompts`` groups of ``group_size`` images an iteration, used for ``updates`` optimizer steps."""

    prompts: int = 12
    group_size: int = 12
    updates: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, 1, "prompts", "group_size", "updates")
        if self.updates > self.prompts * self.group_size:
            raise ValueError(f"updates must not exceed prompts x group_size = {self.prompts * self.group_size}")


@dataclass(frozen=True)
class SftTraining(Optimisation):
    """``[train]`` of a supervised recipe: ``batch`` captioned images an iteration."""

    batch: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, 1, "batch")


@dataclass(frozen=True)
class Evaluation:
    """``[evaluate]``: held-out prompts, sampled with the ODE in ``steps`` steps, without guidance, average weights.

    ``guided``: guidances at which the base is also judged, once; ``probe``: captioned images for the denoising loss.
    """

    every: int = 20
    prompts: int = 256
    steps: int = 20
    seed: int = 1000
    probe: int = 256
    guided: tuple[float, ...] = (1.5, 2.0, 3.0)
    pictures: int = 8

    def __post_init__(self) -> None:
        _check(self, 1, "every", "prompts", "steps", "probe")
        _check(self, 0, "pictures", "seed")
        if any(not 0 <= guidance < math.inf for guidance in self.guided):
            raise ValueError(f"guided must not be negative, got {list(self.guided)}")


@dataclass(frozen=True)
class Checkpoints:
    """``[checkpoint]``: saved ``every`` so many iterations and at the end; the last ``keep`` and the best stay.

    ``precision`` is that of model.safetensors, the stand-alone file; training state is always whole.
    """

    every: int = 20
    keep: int = 2
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        _check(self, 1, "every", "keep")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What both stages' recipes share."""

    model: ModelSpec
    data: Data
    evaluate: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    loggers: dict[str, Logger] = field(default_factory=dict)
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        _check(self, 0, "threads")


@dataclass(frozen=True, kw_only=True)
class SftRecipe(Common):
    """A supervised stage."""

    stage: Literal["sft"] = "sft"
    train: SftTraining
    objective: Denoising


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Common):
    """A reinforcement-learning stage."""

    stage: Literal["train"] = "train"
    plan: Plan
    rewards: dict[str, WeightedReward]
    advantage: Advantage = field(default_factory=PerReward)
    objective: Objective = field(default_factory=PolicyGradient)
    anchor: Anchor | None = None
    behaviour: Behaviour | None = None
    train: Training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise ValueError("rewards must name at least one reward: [rewards.NAME] kind = ...")
        if self.advantage.needs_group and self.train.group_size < 2:
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
        if isinstance(self.objective, PolicyGradient) and not self.plan.window.reach(self.plan.steps):
            raise ValueError("plan.window: no step is noisy, and a policy gradient needs a likelihood; open it")
        if isinstance(self.objective, Forward):
            self.objective.check(self.plan)
        if (self.plan.weights == "behaviour") != bool(self.behaviour):
            raise ValueError('plan.weights = "behaviour" and a [behaviour] table go together: give both or neither')
        if isinstance(self.plan.start, Reference) and not getattr(self.data, "references", True):
            raise ValueError('plan.start.kind = "reference" needs reference images: set data.references = true')

    def reward_set(self) -> RewardSet:
        """The rewards, ready to score."""
        return RewardSet(
            {name: item.reward for name, item in self.rewards.items()},
            {name: item.weight for name, item in self.rewards.items()},
        )


def _prefix(key: str, check: Any, *values: Any) -> None:
    try:
        check(*values)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


Recipe = TrainRecipe | SftRecipe


def names() -> list[str]:
    """The recipes in the package, as WORLD/METHOD."""
    return sorted(str(file.relative_to(RECIPES).with_suffix("")) for file in RECIPES.glob("*/*.toml"))


def locate(name: str) -> Path:
    """The file that a RECIPE argument means: a path, WORLD/METHOD, or a bare METHOD.

    Raises:
        ConfigError: where there is none.
    """
    if name.endswith(".toml"):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"recipe {name}: no such file.")
    full = name if "/" in name else f"{WORLD_OF.get(name, 'scenes')}/{name}"
    file = RECIPES / f"{full}.toml"
    if full not in names():
        known = names()
        hint = did_you_mean(full, known) or did_you_mean(name, [k.partition("/")[2] for k in known])
        raise ConfigError(
            f'recipe "{name}": no such recipe.{hint} There are: {", ".join(known)}; or a path to a .toml.'
        )
    return file


def read_toml(file: Path) -> Plain:
    """A TOML file as plain values.

    Raises:
        ConfigError: where it is not TOML; the message has line and column.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error


def parse_sets(sets: Sequence[str]) -> list[tuple[list[str], Any]]:
    """``key.sub=value`` arguments; a value that is not TOML is a text."""
    out = []
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
        out.append((key.strip().split("."), value))
    return out


def override(table: Plain, sets: Sequence[str]) -> Plain:
    """``table`` with ``--set`` values in place. A new ``kind`` forgets the old kind's other settings."""
    out = copy.deepcopy(table)
    for path, value in sorted(parse_sets(sets), key=lambda item: item[0][-1] != "kind"):
        node = out
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {'.'.join(path)}: {part} is a value, not a table of settings.")
        if path[-1] == "kind" and node.get("kind") != value:
            node.clear()
        node[path[-1]] = value
    return out


def resolve(table: Plain, stage: str) -> tuple[Recipe, Plain]:
    """A recipe's table as the object that runs, and as the full table that run.toml keeps.

    Raises:
        ConfigError: for anything that could not run.
    """
    given = table.get("stage", "train")
    if given != stage:
        raise ConfigError(f'stage = "{given}": this recipe is for `grpaint {given}`, not for `grpaint {stage}`.')
    return build(SftRecipe if stage == "sft" else TrainRecipe, table, "")


def open_recipe(name: str | None, stage: str, sets: Sequence[str] = ()) -> tuple[Recipe, Plain]:
    """Find, read, override and check a recipe."""
    return resolve(override(read_toml(locate(name or DEFAULT[stage])), sets), stage)


def stage_of(name: str) -> str:
    """Which command a recipe is for."""
    stage = read_toml(locate(name)).get("stage", "train")
    if stage not in get_args(Literal["sft", "train"]):
        raise ConfigError(f'{name}: stage = "{stage}": not a stage. There are: sft, train.')
    return str(stage)
