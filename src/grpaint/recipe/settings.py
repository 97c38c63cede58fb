"""The tables of a recipe that are mostly numbers: ``[train]``, ``[evaluate]``, ``[measure]`` and ``[checkpoint]``."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from grpaint.core.bounds import IMAGES, ROWS, Limit, check_range
from grpaint.core.path import TRAIN_STEPS, Path
from grpaint.core.policy import Reward
from grpaint.core.step import Ode, Sampler
from grpaint.measures.features import Features
from grpaint.recipe.build import dump
from grpaint.recipe.optim import Adamw, Schedule
from grpaint.recipe.pieces import Optimizer
from grpaint.recipe.scalars import WHOLE
from grpaint.rollout.plan import check_sampler
from grpaint.rollout.solver import Tail

MOST_PICTURES = 1000  # of one sheet
Shard = Literal["none", "base", "all"]
MOST_EXTRAPOLATION = 2.0
MOST_GUIDED = 100  # each is an evaluation of its own


@dataclass(frozen=True)
class Optimisation:
    """The settings that the ``[train]`` tables of reinforcement learning and of supervised recipes share.

    ``warmup``: iterations over which the learning rate rises. ``ema``: the share of the average weights that an update
    keeps, in [0, 1); less in the first updates (:func:`~grpaint.recipe.optim.average_keep`). ``max_grad_norm``: a
    longer gradient is scaled down to this norm. ``extrapolation`` e: the average is of reference + (1 + e) (current -
    reference), as if the run had gone farther in its direction (ExPO, arXiv 2404.16792); 0: of the current weights.

    ``evaluations``: the run and its schedule end when this many model evaluations are used up (0: no limit).
    ``nonfinite``: a run stops after this many updates in a row whose gradient was NaN or infinite; each is skipped.
    """

    iterations: int
    learning_rate: float
    seed: int = 0
    warmup: int = 0
    schedule: Schedule = "constant"
    max_grad_norm: Limit = 1.0
    ema: float = 0.9
    extrapolation: float = 0.0
    evaluations: int = 0
    nonfinite: int = 5
    optimizer: Optimizer = field(default_factory=Adamw)

    def __post_init__(self) -> None:
        check_range(self, 1, WHOLE, "iterations", "nonfinite")
        check_range(self, 0, WHOLE, "warmup", "seed", "evaluations")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not 0 <= self.extrapolation <= MOST_EXTRAPOLATION:
            raise ValueError(f"extrapolation must lie in [0, {MOST_EXTRAPOLATION}], got {self.extrapolation}")

    def total(self, done: int, used: int) -> int:
        """Estimate the iterations of the whole run, after ``done`` of them took ``used`` model evaluations."""
        if not (self.evaluations and used):
            return self.iterations
        return min(self.iterations, max(done, round(done * self.evaluations / used)))


@dataclass(frozen=True)
class Training(Optimisation):
    """``[train]``: ``prompts`` groups of ``group_size`` images per iteration, used for ``updates`` optimizer steps.

    ``retain`` keeps the graphs of the rollout's noisy steps, so that the update needs no second forward pass.
    ``parts``: the prompts are sampled in this many parts; with ``overlap`` one part is scored while the next is
    sampled. Neither changes a number.
    ``constant``: the run stops after this many iterations in a row in which a reward gave all images the same score
    (0: never).
    """

    prompts: int = 12
    group_size: int = 12
    updates: int = 1
    retain: bool = False
    parts: int = 1
    overlap: bool = True
    constant: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, ROWS, "prompts", "group_size", "updates", "parts")
        check_range(self, 0, WHOLE, "constant")
        if self.prompts * self.group_size > IMAGES:
            raise ValueError(
                f"prompts x group_size = {self.prompts * self.group_size}: an iteration has at most {IMAGES} images; "
                "lower one"
            )
        if self.parts > self.prompts:
            raise ValueError(f"parts must not exceed prompts = {self.prompts}, got {self.parts}")
        if self.retain and self.parts > 1:
            raise ValueError(f"retain keeps graphs of one undivided rollout, and parts = {self.parts}; choose one")
        if self.retain and self.updates > 1:
            raise ValueError(
                f"retain keeps graphs for one update of a rollout, and updates = {self.updates}; choose one"
            )


@dataclass(frozen=True)
class SftTraining(Optimisation):
    """``[train]`` of a supervised recipe: ``batch`` captioned images per iteration."""

    batch: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, ROWS, "batch")


@dataclass(frozen=True)
class Evaluation:
    """``[evaluate]``: how held-out prompts are sampled, with the average weights, in ``steps`` steps of ``sampler``.

    ``guidance`` applies to the judged samples (1: none), whatever the rollouts use; a distilled model keeps its own.
    ``every``: iterations between evaluations. ``guided``: guidances at which the base is also judged, once. ``probe``:
    the number of captioned images for the denoising loss. ``tuned_share``: the share of the steps, in (0, 1] and from
    the first, that the trained model takes; the base takes the rest (MixGRPO's hybrid inference). ``pictures``: the
    number of prompts, the first ones, whose pictures are saved; besides those of evaluations they are drawn every
    ``pictures_every`` iterations (0: not between evaluations).
    """

    every: int = 20
    prompts: int = 256
    steps: int = 20
    sampler: Sampler = field(default_factory=Ode)
    tuned_share: float = 1.0
    guidance: float = 1.0
    seed: int = 1000
    probe: int = 256
    guided: tuple[float, ...] = (1.5, 2.0, 3.0)
    pictures: int = 8
    pictures_every: int = 20

    def __post_init__(self) -> None:
        check_range(self, 1, WHOLE, "every")
        check_range(self, 1, ROWS, "prompts", "probe")
        check_range(self, 1, TRAIN_STEPS, "steps")
        check_range(self, 0, MOST_PICTURES, "pictures")
        check_range(self, 0, WHOLE, "seed", "pictures_every")
        if not 0 < self.tuned_share <= 1:
            raise ValueError(f"tuned_share must lie in (0, 1], got {self.tuned_share}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if len(self.guided) > MOST_GUIDED:
            raise ValueError(f"guided must have at most {MOST_GUIDED} values, got {len(self.guided)}")
        if any(not 0 <= guidance < math.inf for guidance in self.guided):
            raise ValueError(f"guided must not be negative, got {list(self.guided)}")

    def check(self, path: Path) -> None:
        """Check the sampler and its steps on a model's path, before any weights are opened.

        Raises:
            ValueError: they do not suit it.
        """
        check_sampler(self.sampler, path.grid(self.steps), "sampler")

    @property
    def tail(self) -> Tail | None:
        """The solver that takes all steps, if it is one of higher order."""
        return None

    @property
    def adapters(self) -> tuple[str, ...] | None:
        """The names of the frozen adapters that are on; None for those of training."""
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """How samples are drawn, as a line of evaluations.jsonl says it."""
        return {
            "guidance": self.guidance,
            "steps": self.steps,
            "sampler": dump(self.sampler),
            "tuned_share": self.tuned_share,
        }


@dataclass(frozen=True)
class Measuring:
    """``[measure]``: what ``grpaint evaluate`` measures of several models besides the recipe's own rewards.

    ``features``: the feature extractor for FID, KID, recall and diversity. The default is the scorer's on scenes; on
    other data there is none, and these measures are left out. ``rewards``: scorers that take no part in training.
    ``strength``: how far references are noised for reconstructions, in (0, 1]. Diversity within a prompt is measured
    on ``group`` images of each of ``group_prompts`` prompts. ``draws``: bootstrap resamples per interval;
    ``image_draws``: the same for FID and KID, which cost more.
    """

    features: Features | None = None
    rewards: dict[str, Reward] = field(default_factory=dict)
    strength: float = 0.6
    group: int = 4
    group_prompts: int = 32
    draws: int = 1000
    image_draws: int = 100

    def __post_init__(self) -> None:
        check_range(self, 2, ROWS, "group", "draws", "image_draws")
        check_range(self, 1, ROWS, "group_prompts")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")


@dataclass(frozen=True)
class Checkpoints:
    """``[checkpoint]``: save after every ``every`` iterations and at the end; keep the last ``keep`` and the best.

    ``precision`` applies to model.safetensors, the stand-alone file; the training state is always fp32.
    """

    every: int = 20
    keep: int = 2
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        check_range(self, 1, WHOLE, "every", "keep")


@dataclass(frozen=True)
class Processes:
    """``[processes]``: how the processes of a run share the model and watch each other; it changes no number.

    ``shard``: with "base" the ranks of a machine divide the frozen network under an adapter, and each has a share of
    its parameters; with "all" they also divide a network that is trained as a whole, its other sets of weights and the
    state of its optimizer; with "none" each has all of them.
    ``check_every``: iterations between two comparisons of all ranks' weights. ``limit_s``: how long a rank waits for
    another; ``start_s``: the same until the first iteration has begun, while weights are loaded.
    """

    shard: Shard = "none"
    check_every: int = 20
    limit_s: float = 1800.0
    start_s: float = 3600.0

    def __post_init__(self) -> None:
        check_range(self, 1, WHOLE, "check_every")
        for name in ("limit_s", "start_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(f"{name} must lie in (0, 86400], got {getattr(self, name)}")
