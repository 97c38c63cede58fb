"""What a rollout is to do, and the course of steps that follows from it in an iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from grpaint.core.errors import ConfigError
from grpaint.core.path import Path, Point
from grpaint.core.policy import Weights
from grpaint.core.step import Ode, Sampler
from grpaint.rollout.prune import Funnel
from grpaint.rollout.solver import Tail
from grpaint.rollout.start import Independent, Reference, Start
from grpaint.rollout.window import Whole, Window


@dataclass(frozen=True)
class Leg:
    """One step of a course: ``std`` is its noise, ``trained`` steps are recorded, ``solved`` ones may look back."""

    step: int
    here: Point
    there: Point
    sampler: Sampler
    trained: bool
    solved: bool = False

    @property
    def std(self) -> float:
        """Of the noise that the step adds."""
        return self.sampler(self.here, self.there)[1]


@dataclass(frozen=True)
class Course:
    """The steps of an iteration in order, the one before which groups fork, and how many a group keeps after which."""

    legs: tuple[Leg, ...]
    fork: int
    prune: dict[int, int]

    def previewed(self, step: int) -> bool:
        """Whether ``step`` lies behind the first action and is one itself: what it predicts, some action influenced."""
        trained = [leg.step for leg in self.legs if leg.trained]
        return bool(trained) and trained[0] < step <= trained[-1]


@dataclass(frozen=True)
class Plan:
    """How a rollout samples: ``sampler`` in the window, ``outside`` elsewhere; and whose ``weights``.

    ``tail`` shortens what follows the window, with a higher-order solver. ``previews`` scores the clean prediction of
    every step that an action can have influenced, for step-aware advantages. ``base_after``: from this share of the
    steps on the reference weights sample (MixGRPO's hybrid inference).
    """

    steps: int = 10
    sampler: Sampler = field(default_factory=Ode)
    window: Window = field(default_factory=Whole)
    prune: Funnel | None = None
    start: Start = field(default_factory=Independent)
    outside: Sampler = field(default_factory=Ode)
    weights: Weights = "current"
    tail: Tail | None = None
    previews: bool = False
    base_after: float = 1.0

    def check(self, path: Path, group_size: int) -> None:
        """Refuse what cannot run, before any weight is opened.

        Raises:
            ValueError: with the reason; the configuration puts the key before it.
        """
        self.window.check(self.steps)
        if self.prune:
            self.prune.check(self.steps, group_size)
        grid = path.grid(self.steps)
        for k in self.window.reach(self.steps):
            if not self._std(grid, k) > 0:
                raise ValueError(
                    f"sampler adds no noise at step {k}, which the window may train: it has no likelihood there. Use a "
                    "noisy sampler (an eta above 0), and keep the window off a last step that ends clean"
                )
        if not 0 < self.base_after <= 1:
            raise ValueError(f"base_after must lie in (0, 1], got {self.base_after}")
        reach = self.window.reach(self.steps)
        if isinstance(self.start, Reference):
            self._check_entry(self.start.enter(grid), reach)
        if self.base_after < 1 and len(reach):
            raise ValueError(
                "base_after leaves steps to the base, which training cannot credit; it is for a closed window. To "
                "judge or sample that way set evaluate.tuned_share"
            )
        if self.prune and self.prune.close and not (len(reach) and reach[-1] + 1 < self.steps):
            raise ValueError("prune.close needs a window that closes before the last step; set prune.at instead")
        if self.tail:
            self._check_tail(grid)

    def _std(self, grid: Sequence[Point], k: int) -> float:
        """Of the noise that the sampler adds at step ``k``, found to be a number as its gain is."""
        try:
            gain, std = self.sampler(grid[k], grid[k + 1])
        except (TypeError, ValueError) as error:
            raise ValueError(f"sampler: {error}") from error
        if not (math.isfinite(gain) and math.isfinite(std)):
            raise ValueError(f"sampler gives gain {gain} and std {std} at step {k}; both must be finite")
        return std

    def _check_entry(self, enter: int, reach: Sequence[int]) -> None:
        """Rows with a reference begin at step ``enter``, and the others at noise."""
        if self.previews:
            raise ValueError('previews does not go with start.kind = "reference": rows enter at different steps')
        if len(reach) and reach[-1] < enter:
            raise ValueError(
                f"window trains no step from {enter} on, where rows with a reference begin: they would teach nothing. "
                "Let it reach further, or raise start.strength"
            )
        if self.prune and self.prune.at and self.prune.at[0] < enter:
            raise ValueError(f"prune.at must not come before step {enter}, where rows with a reference begin")
        if self.prune and self.prune.close:
            raise ValueError(
                'prune.close does not go with start.kind = "reference": a window may close before such rows begin; set '
                "prune.at instead"
            )

    def _check_tail(self, grid: Sequence[Point]) -> None:
        """A tail solves noise-free steps, alike for all rows, and has step numbers of its own."""
        reach = self.window.reach(self.steps)
        if not len(reach):
            raise ValueError("tail follows a window, and this one is closed; open the window, or drop the tail")
        if any(self.outside(here, there)[1] for here, there in pairwise(grid)):
            raise ValueError('tail looks back, which noisy steps forbid: outside must be noise-free ({ kind = "ode" })')
        if isinstance(self.start, Reference):
            raise ValueError('tail does not go with start.kind = "reference": rows would enter at steps it leaves out')
        if self.prune and self.prune.at:
            raise ValueError(
                "prune.at does not go with a tail, whose steps are renumbered; use prune.close = true, which prunes "
                "where the window closes"
            )

    def course(self, path: Path, iteration: int, seed: int) -> Course:
        """The steps of an iteration.

        Raises:
            ConfigError: where a window chooses steps beyond its reach.
        """
        trained, reach = self.window.steps(self.steps, iteration, seed), self.window.reach(self.steps)
        if list(trained) != sorted(set(trained).intersection(reach, range(self.steps))):
            raise ConfigError(
                f"plan.window: it chose steps {list(trained)} in iteration {iteration}; wanted are steps of its reach, "
                f"{list(reach)}, ascending, below plan.steps = {self.steps}."
            )
        grid = path.grid(self.steps)
        close = trained[-1] + 1 if len(trained) else 0
        tail = self.tail if close < self.steps else None
        points = [*grid[:close], *tail.points(path, self.steps, close)] if tail else grid
        legs = tuple(
            Leg(
                k,
                here,
                there,
                self.sampler if k in trained else self.outside if there.sigma else Ode(),  # images end clean
                k in trained,
                bool(tail) and k >= close,
            )
            for k, (here, there) in enumerate(pairwise(points))
        )
        prune = self.prune.checkpoints(close) if self.prune else {}
        fork = next((leg.step for leg in legs if leg.std > 0), len(legs))
        return Course(legs, min(fork, *prune, len(legs)), prune)
