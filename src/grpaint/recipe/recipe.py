"""A recipe as one frozen object: its tables, and the rules across them, which are checked when it is built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from grpaint.core.bounds import check_range
from grpaint.core.policy import PeopleReward, Reward
from grpaint.core.runtime import Device, Precision
from grpaint.learn.advantage import Advantage, PerReward
from grpaint.learn.forward import ForwardObjective
from grpaint.learn.objective import Anchor, Denoising, Objective, PolicyGradient
from grpaint.learn.table import RewardSet
from grpaint.measures.hacking import Watch
from grpaint.recipe.deployment import Deployable, Deployment
from grpaint.recipe.optim import Behaviour, MuonAdamw
from grpaint.recipe.pieces import Data, Logger, ModelSpec, WeightedReward, sharing
from grpaint.recipe.settings import Checkpoints, Evaluation, Measuring, Processes, SftTraining, Training
from grpaint.rollout.rollout import Plan
from grpaint.rollout.start import Reference

MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Common(Deployable):
    """The tables and settings that both stages share; ``threads``, of each process: 0 leaves it to PyTorch."""

    model: ModelSpec
    data: Data
    evaluate: Evaluation = field(default_factory=Evaluation)
    deploy: Deployment | None = None
    measure: Measuring = field(default_factory=Measuring)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    loggers: dict[str, Logger] = field(default_factory=dict)
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0
    processes: Processes | None = None

    def __post_init__(self) -> None:
        check_range(self, 0, MOST_THREADS, "threads")
        check_evaluation(self.evaluate, self.deploy, self.model)
        check_images(self.data, self.model)


def check_shard(model: ModelSpec, processes: Processes | None) -> str:
    """Return what processes divide of a model.

    Raises:
        ValueError: they cannot divide it so.
    """
    shard = processes.shard if processes else "none"
    if shard == "none":
        return shard
    check = getattr(model, "check_shard", None)
    if not check:
        raise ValueError(f'processes.shard = "{shard}": only for model.kind = "diffusers"; use "none"')
    check(shard)
    return shard


def _check_trained_shard(recipe: "Recipe") -> None:
    """Raise ValueError unless processes can divide the model, and train it, as ``processes.shard`` says."""
    shard = check_shard(recipe.model, recipe.processes)
    if shard == "none" or getattr(recipe.model, "lora", None):
        return
    if isinstance(recipe.train.optimizer, MuonAdamw):
        raise ValueError(
            f'processes.shard = "{shard}": Muon needs whole matrices, and a process has a share of each; use '
            'train.optimizer.kind = "adamw"'
        )
    if recipe.precision == "fp16":
        raise ValueError(f'processes.shard = "{shard}": the scale of fp16 gradients is not shared; use "bf16"')


def check_evaluation(evaluate: Evaluation, deploy: Deployment | None, model: ModelSpec) -> None:
    """Check that a model can be sampled as ``[evaluate]`` and ``[deploy]`` say.

    Raises:
        ValueError: a sampler or its steps do not suit the model's path, or the model lacks a frozen adapter.
    """
    _prefix("evaluate", evaluate.check, model.path)
    if deploy:
        _prefix("deploy", deploy.check, model)


def check_images(data: Data, model: ModelSpec) -> None:
    """Check that captioned images and measures are of a size that the model's images can be.

    Raises:
        ValueError, ConfigError: they are of another size.
    """
    check_size = getattr(model, "check_size", None)
    if data.captioned and check_size:
        for size in getattr(data, "sizes", ()):
            check_size(*size)
    _check_size("data measures", data, model)


@dataclass(frozen=True, kw_only=True)
class SftRecipe(Common):
    """The recipe of a supervised stage."""

    stage: Literal["sft"] = "sft"
    train: SftTraining
    objective: Denoising

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_captioned(self.data, "stage")
        _check_trained_shard(self)


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
        self._check_rewards()
        self._check_plan()
        if isinstance(self.objective, ForwardObjective):
            self.objective.check(self.plan)
        if (self.plan.weights == "behaviour") != bool(self.behaviour):
            raise ValueError('plan.weights = "behaviour" and a [behaviour] table go together: give both or neither')
        if self.anchor:
            _check_captioned(self.data, "anchor")
        self._check_references()
        self._check_updates()
        _check_trained_shard(self)

    def _check_rewards(self) -> None:
        if not self.rewards:
            raise ValueError("rewards must name at least one reward: [rewards.NAME] kind = ...")
        if getattr(self.advantage, "needs_group", True) and self.train.group_size < 2:
            raise ValueError(
                f"train.group_size = {self.train.group_size}: advantages relative to the group need 2 or more images a "
                'prompt; raise it, or use advantage = { kind = "batch" }'
            )
        if not any(item.weight for item in self.rewards.values()):
            raise ValueError("rewards: every weight is 0, so nothing can be learned; raise one")
        asking = [name for name, item in self.rewards.items() if isinstance(item.reward, PeopleReward)]
        if len(asking) > 1:
            raise ValueError(f"rewards.{asking[1]}: one reward of a run asks people, and rewards.{asking[0]} does")
        for name, item in self.rewards.items():
            _check_size(f"rewards.{name} scores", item.reward, self.model)
            if item.weight:
                self._check_partial(name, item.reward)
            elif asking == [name] and not self.evaluate.pictures:
                raise ValueError(f"rewards.{name}: with weight 0 people compare pictures; raise evaluate.pictures")

    def _check_partial(self, name: str, reward: Reward) -> None:
        if getattr(reward, "partial", False) and not getattr(self.advantage, "needs_group", True):
            raise ValueError(
                f"rewards.{name} may leave groups without a score, and this advantage compares images of different "
                'groups; use advantage = { kind = "per-reward" }'
            )
        if isinstance(reward, PeopleReward) and (self.plan.prune or self.plan.previews):
            raise ValueError(
                f"rewards.{name} looks at finished images alone, and plan.prune and plan.previews score unfinished "
                "ones; leave them out"
            )

    def _check_plan(self) -> None:
        if self.plan.steps < 1:
            raise ValueError(f"plan.steps must be at least 1, got {self.plan.steps}")
        likelihood = self.objective if isinstance(self.objective, PolicyGradient) else None
        if likelihood and self.plan.steps == 1:
            raise ValueError(
                "plan.steps = 1: the only step ends in the finished image and adds no noise, and a policy gradient "
                'needs a likelihood; take 2 steps or more, or objective = { kind = "awm" } with '
                'plan.window = { kind = "closed" }'
            )
        _prefix("plan.window", self.plan.window.check, self.plan.steps)
        _prefix("plan", self.plan.check, self.model.path, self.train.group_size)
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

    def _check_updates(self) -> None:
        if getattr(self.objective, "needs_group", False) and self.train.updates > 1:
            raise ValueError(
                f"train.updates = {self.train.updates}: each update has some images of a group, and this objective "
                "compares all of them; use 1"
            )
        if isinstance(self.objective, ForwardObjective) and self.train.updates > 1 and self.plan.weights == "current":
            raise ValueError(
                f"train.updates = {self.train.updates}: after its first update a rollout is no longer of the current "
                'weights, with which this objective would compare it; set plan.weights = "behaviour" and a [behaviour] '
                "table (slope = 0: it has the weights before the first update)"
            )
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
        """Return the rewards of training with their current weights, floors included.

        People who take no part in training are left out: they are asked at evaluations.
        """
        silent = [
            name for name, item in self.rewards.items() if isinstance(item.reward, PeopleReward) and not item.weight
        ]
        items = {name: item for name, item in self.rewards.items() if name not in silent}
        return RewardSet(
            {name: item.reward for name, item in items.items()},
            {name: item.weight_now for name, item in items.items()},
            sharing(items),
        )


def _check_size(what: str, piece: Any, model: ModelSpec) -> None:
    """Refuse a piece that looks at images of one size alone, if the model's images have another."""
    size = getattr(piece, "image_size", None)
    if size and tuple(model.pixels) != size:
        high, width = model.pixels
        raise ValueError(
            f"{what} images of {size[1]} x {size[0]} pixels, and the model's have {width} x {high}; set model.height "
            f"and model.width to these, or use another kind"
        )


def _prefix(key: str, check: Callable[..., None], *values: Any) -> None:
    try:
        check(*values)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from error


def _check_captioned(data: Data, key: str) -> None:
    if not data.captioned:
        raise ValueError(f'{key} trains on captioned images, and this data has prompts alone; use data.kind = "images"')


Recipe = TrainRecipe | SftRecipe
