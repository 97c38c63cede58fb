"""Windows: which steps of a rollout are noisy and trained. Steps are counted from pure noise, 0 .. steps - 1."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from grpaint.core.rng import permutation, uniform


class Window(Protocol):
    """Chooses the noisy steps of an iteration."""

    def steps(self, total: int, iteration: int, seed: int) -> Sequence[int]:
        """Return the noisy steps among ``total``, ascending; must depend on its arguments alone."""

    def reach(self, total: int) -> Sequence[int]:
        """Return every step that may be noisy in some iteration."""

    def check(self, total: int) -> None:
        """Raise ValueError if the window does not fit in ``total`` steps."""


@dataclass(frozen=True)
class Whole:
    """Every step but the last ``skip_last``.

    Flow-GRPO leaves out the last one: its noise is tiny, and the likelihood would divide by it.
    """

    skip_last: int = 1

    def check(self, total: int) -> None:
        if not 0 <= self.skip_last < total:
            raise ValueError(f"skip_last must lie in 0..{total - 1} for {total} steps, got {self.skip_last}")

    def reach(self, total: int) -> range:
        return range(total - self.skip_last)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        return self.reach(total)


@dataclass(frozen=True)
class Prefix:
    """The first ``size`` steps."""

    size: int = 2

    def check(self, total: int) -> None:
        if not 1 <= self.size <= total:
            raise ValueError(f"size must lie in 1..{total} for {total} steps, got {self.size}")

    def reach(self, total: int) -> range:
        return range(self.size)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        return self.reach(total)


@dataclass(frozen=True)
class Random:
    """``size`` consecutive steps whose first is drawn from ``low`` .. ``high`` every iteration (Flow-GRPO-Fast).

    All ranks and prompts of an iteration share the draw.
    """

    size: int = 2
    low: int = 0
    high: int = 5

    def check(self, total: int) -> None:
        if self.size < 1 or not 0 <= self.low <= self.high or self.high + self.size > total:
            raise ValueError(
                f"size {self.size}, low {self.low}, high {self.high} must fit in {total} steps: high + size <= {total}"
            )

    def reach(self, total: int) -> range:
        return range(self.low, self.high + self.size)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        draw = uniform((seed, iteration, "window"), 1).item()
        first = self.low + int(draw * (self.high - self.low + 1))
        return range(first, first + self.size)


@dataclass(frozen=True)
class Sliding:
    """A window of ``size`` steps that moves from noise to data while training goes on (MixGRPO, arXiv 2507.21802).

    It stays at a position for ``every`` iterations, then moves by ``stride`` (0: never moves). With ``decay`` each
    stay is shorter, down to one iteration: linearly in the position, or exponentially, with the published constants:
    ceil(every * exp(-0.1 * max(0, first - 13))), where ``first`` is the window's first step. After the last position,
    which leaves out the last ``skip_last`` steps, it starts over. It is always ``size`` steps wide.
    """

    size: int = 4
    every: int = 25
    stride: int = 1
    decay: Literal["none", "linear", "exponential"] = "none"
    skip_last: int = 1

    def __post_init__(self) -> None:
        for name, minimum in (("size", 1), ("every", 1), ("stride", 0), ("skip_last", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")

    def check(self, total: int) -> None:
        if self.size + self.skip_last > total:
            raise ValueError(f"size {self.size} and skip_last {self.skip_last} must fit in {total} steps")

    def _first_steps(self, total: int) -> range:
        """Return the window's first step at each position, in order."""
        return range(0, total - self.skip_last - self.size + 1, self.stride) if self.stride else range(1)

    def _iterations_at(self, first: int, last: int) -> int:
        """Return how many iterations the window starts at step ``first``; ``last`` is its last first step."""
        if self.decay == "linear":
            progress = first / max(last, 1)
            return max(1, int(self.every * (1 - progress) + progress))
        if self.decay == "exponential":
            return math.ceil(self.every * math.exp(-0.1 * max(0, first - 13)))
        return self.every

    def reach(self, total: int) -> range:
        return range(self._first_steps(total)[-1] + self.size)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        first_steps = self._first_steps(total)
        durations = [self._iterations_at(first, first_steps[-1]) for first in first_steps]
        position = bisect.bisect_right(list(itertools.accumulate(durations)), iteration % sum(durations))
        first = first_steps[position]
        return range(first, first + self.size)


@dataclass(frozen=True)
class Subset:
    """A random ``share`` of the steps but the last ``skip_last`` (DanceGRPO), drawn every iteration.

    With a noisy ``plan.outside`` the other steps are noisy too but not trained, as published.
    """

    share: float = 0.6
    skip_last: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def check(self, total: int) -> None:
        Whole(self.skip_last).check(total)

    def reach(self, total: int) -> range:
        return range(total - self.skip_last)

    def steps(self, total: int, iteration: int, seed: int) -> tuple[int, ...]:
        reach = self.reach(total)
        order = permutation((seed, iteration, "window"), len(reach))
        return tuple(sorted(order[: math.ceil(round(self.share * len(reach), 9))].tolist()))


@dataclass(frozen=True)
class Closed:
    """No step is noisy: a deterministic rollout, for evaluation and for objectives without a likelihood."""

    def check(self, total: int) -> None:
        """Do nothing: a closed window fits any number of steps."""

    def reach(self, total: int) -> range:
        return range(0)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        return self.reach(total)
