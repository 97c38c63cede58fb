"""The settings of a rollout, and the sequence of steps that follows from them in an iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from grpaint.core.bounds import check_range
from grpaint.core.errors import ConfigError
from grpaint.core.importing import user_code_location
from grpaint.core.path import Path, Point
from grpaint.core.policy import Weights
from grpaint.core.step import Ode, Sampler
from grpaint.rollout.prune import Funnel
from grpaint.rollout.solver import Tail
from grpaint.rollout.start import Independent, Reference, Start
from grpaint.rollout.window import Whole, Window


@dataclass(frozen=True)
class Leg:
    """One step of a course; ``trained`` steps are recorded, steps ``in_tail`` use the multistep solver."""

    step: int
    here: Point
    there: Point
    sampler: Sampler
    trained: bool
    in_tail: bool = False

    @property
    def std(self) -> float:
        """Standard deviation of the noise that the step adds."""
        return self.sampler(self.here, self.there)[1]


@dataclass(frozen=True)
class Course:
    """The steps of one iteration, in order.

    ``fork`` is the step before which a row per prompt becomes a row per sample; ``prune`` maps a step to the number of
    members that each group keeps there.
    """

    legs: tuple[Leg, ...]
    fork: int
    prune: dict[int, int]

    def has_preview(self, step: int) -> bool:
        """Whether ``step`` comes after the first trained step but not after the last, so its preview credits one."""
        trained_steps = [leg.step for leg in self.legs if leg.trained]
        return bool(trained_steps) and trained_steps[0] < step <= trained_steps[-1]


def _pair(coefficients: Any) -> tuple[float, float]:
    try:
        gain, std = coefficients
    except (TypeError, ValueError) as error:
        raise ValueError(f"a sampler returns (gain, std), and not {coefficients!r:.80}") from error
    return gain, std


def step_std(sampler: Sampler, grid: Sequence[Point], k: int, key: str) -> float:
    """Return the std of the noise that a sampler adds at step ``k`` of a grid; ``key`` names the sampler in errors.

    Raises:
        ValueError: the sampler does not suit the path, or its gain or std is not finite.
    """
    try:
        gain, std = _pair(sampler(grid[k], grid[k + 1]))
        finite = math.isfinite(gain) and math.isfinite(std)
    except (ArithmeticError, TypeError, ValueError) as error:
        place = user_code_location(error)
        raise ValueError(f"{key}: {error}" + (f" ({place})" if place else "")) from error
    if not finite:
        raise ValueError(f"{key} gives gain {gain} and std {std} at step {k}; both must be finite")
    return std


def check_sampler(sampler: Sampler, grid: Sequence[Point], key: str) -> None:
    """Check a sampler on every step that it takes outside windows: all but those that end at clean data.

    Raises:
        ValueError: it does not suit the path; ``key`` names it.
    """
    for k, there in enumerate(grid[1:]):
        if there.sigma:
            step_std(sampler, grid, k, key)


@dataclass(frozen=True)
class Growth:
    """``[plan.growth]``: rollouts of one step more every ``every`` iterations, up to ``most`` steps.

    Few steps teach most per model evaluation at first; later the error of few steps limits the rewards.
    """

    most: int
    every: int = 50

    def __post_init__(self) -> None:
        check_range(self, 1, 1000, "most")
        check_range(self, 1, 1_000_000, "every")

    def steps(self, first: int, iteration: int) -> int:
        """Return the steps of an iteration's rollouts, which begin with ``first``."""
        return min(self.most, first + iteration // self.every)


@dataclass(frozen=True)
class Plan:
    """The settings of a rollout: ``sampler`` in the window, ``outside`` in other steps, and which ``weights`` sample.

    ``tail`` takes the steps after the window, all of them if it is closed, by a higher-order solver, and fewer of them;
    ``growth`` adds steps as a run goes on. ``previews`` scores the predicted clean sample at every step that an earlier
    action influenced, for step-aware advantages. ``base_after``: the share of the steps after which the reference
    weights sample (MixGRPO's hybrid inference).
    """

    steps: int = 10
    sampler: Sampler = field(default_factory=Ode)
    window: Window = field(default_factory=Whole)
    prune: Funnel | None = None
    start: Start = field(default_factory=Independent)
    outside: Sampler = field(default_factory=Ode)
    weights: Weights = "current"
    tail: Tail | None = None
    growth: Growth | None = None
    previews: bool = False
    base_after: float = 1.0

    def check(self, path: Path, group_size: int) -> None:
        """Check the settings before any weights are opened.

        Raises:
            ValueError: the settings cannot work together; the caller puts the recipe's key before the message.
        """
        self.window.check(self.steps)
        if self.prune:
            self.prune.check(self.steps, group_size)
        grid = path.grid(self.steps)
        check_sampler(self.outside, grid, "outside")
        for k in self.window.reach(self.steps):
            if not step_std(self.sampler, grid, k, "sampler") > 0:
                raise ValueError(
                    f"sampler adds no noise at step {k}, which the window may train: it has no likelihood there. Use a "
                    "noisy sampler (an eta above 0), and keep the window off a last step that ends clean"
                )
        if not 0 < self.base_after <= 1:
            raise ValueError(f"base_after must lie in (0, 1], got {self.base_after}")
        reach = self.window.reach(self.steps)
        if isinstance(self.start, Reference):
            self._check_entry(self.start.entry_step(grid), reach)
        if self.base_after < 1 and len(reach):
            raise ValueError(
                "base_after lets the base sample some steps, which cannot be trained; it needs a closed window. To "
                "evaluate or sample that way set evaluate.tuned_share"
            )
        if self.prune and self.prune.close and not (len(reach) and reach[-1] + 1 < self.steps):
            raise ValueError("prune.close needs a window that closes before the last step; set prune.at instead")
        if self.tail:
            self._check_tail(grid)
        if self.growth:
            self._check_growth(self.growth, path)

    def _check_entry(self, entry: int, reach: Sequence[int]) -> None:
        """Refuse settings that conflict with starting some rows from a reference at step ``entry``."""
        if self.previews:
            raise ValueError('previews does not go with start.kind = "reference": rows enter at different steps')
        if len(reach) and reach[-1] < entry:
            raise ValueError(
                f"window trains no step from {entry} on, where rows with a reference begin: they would not be trained. "
                "Let it reach further, or raise start.strength"
            )
        if self.prune and self.prune.at and self.prune.at[0] < entry:
            raise ValueError(f"prune.at must not come before step {entry}, where rows with a reference begin")
        if self.prune and self.prune.close:
            raise ValueError(
                'prune.close does not go with start.kind = "reference": a window may close before such rows begin; set '
                "prune.at instead"
            )

    def _check_tail(self, grid: Sequence[Point]) -> None:
        """Check that the tail's steps are noise-free and the same for all rows, as its solver requires."""
        if any(self.outside(here, there)[1] for here, there in pairwise(grid)):
            raise ValueError('tail uses a multistep solver, so outside must be noise-free ({ kind = "ode" })')
        if isinstance(self.start, Reference):
            raise ValueError('tail does not go with start.kind = "reference": rows would enter at steps that it skips')
        if self.prune and self.prune.at:
            raise ValueError(
                "prune.at does not go with a tail, whose steps are renumbered; use prune.close = true, which prunes "
                "where the window closes"
            )

    def _check_growth(self, growth: Growth, path: Path) -> None:
        """Check that nothing else in the plan counts steps, and that the path has so many."""
        if len(self.window.reach(self.steps)) or self.prune:
            raise ValueError(
                "growth changes the number of steps, by which a window and prune.at name theirs; it needs "
                'window = { kind = "closed" } and no prune'
            )
        if growth.most < self.steps:
            raise ValueError(f"growth.most = {growth.most}: must be at least plan.steps = {self.steps}")
        path.grid(growth.most)

    def steps_at(self, iteration: int) -> int:
        """Return the steps of an iteration's rollouts: ``steps``, and more by ``growth``."""
        return self.growth.steps(self.steps, iteration) if self.growth else self.steps

    def course(self, path: Path, iteration: int, seed: int) -> Course:
        """Return the steps of an iteration.

        Raises:
            ConfigError: if the window chooses steps outside its reach.
        """
        steps = self.steps_at(iteration)
        trained_steps, reach = self.window.steps(steps, iteration, seed), self.window.reach(steps)
        if list(trained_steps) != sorted(set(trained_steps).intersection(reach, range(steps))):
            raise ConfigError(
                f"plan.window: it chose steps {list(trained_steps)} in iteration {iteration}; they must be steps of "
                f"its reach, {list(reach)}, ascending and below plan.steps = {self.steps}."
            )
        grid = path.grid(steps)
        close = trained_steps[-1] + 1 if len(trained_steps) else 0
        tail = self.tail if close < steps else None
        points = [*grid[:close], *tail.points(path, steps, close)] if tail else grid
        legs = tuple(
            Leg(
                k,
                here,
                there,
                self.sampler if k in trained_steps else self._outside_sampler(there),
                k in trained_steps,
                bool(tail) and k >= close,
            )
            for k, (here, there) in enumerate(pairwise(points))
        )
        prune = self.prune.checkpoints(close) if self.prune else {}
        fork = next((leg.step for leg in legs if leg.std > 0), len(legs))
        return Course(legs, min(fork, *prune, len(legs)), prune)

    def reach(self, path: Path, iteration: int) -> tuple[tuple[Point, Point], ...]:
        """Return the ends of every step that the window may choose."""
        steps = self.steps_at(iteration)
        every = list(pairwise(path.grid(steps)))
        return tuple(every[step] for step in self.window.reach(steps))

    def _outside_sampler(self, there: Point) -> Sampler:
        """Return the sampler of a step outside the window; one that ends at clean data adds no noise."""
        return self.outside if there.sigma else Ode()
