"""Which steps of a rollout are noisy, and therefore trained. Steps are counted from pure noise, 0 .. steps - 1."""

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
        """The noisy steps among ``total``, ascending, a function of its arguments alone."""

    def reach(self, total: int) -> Sequence[int]:
        """Every step that some iteration may make noisy."""

    def check(self, total: int) -> None:
        """Raises ValueError where the window cannot lie within ``total`` steps."""


@dataclass(frozen=True)
class Whole:
    """Every step but the last ``skip_last``.

    Flow-GRPO leaves out the last one: its noise is tiny, and so is the spread that a likelihood would divide by.
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
    """``size`` steps in a row whose first is drawn from ``low`` .. ``high`` once an iteration (Flow-GRPO-Fast).

    Every rank and every prompt of an iteration shares the draw.
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

    It stays ``every`` iterations at a place, then moves by ``stride`` (0: frozen at the start). With ``decay`` it stays
    ever shorter, down to one iteration: linearly in its place, or exponentially, ceil(every * exp(-0.1 * max(0, first -
    13))), the published constants. Past the last place, which leaves out the last ``skip_last`` steps, it begins again.
    It is always ``size`` steps wide.
    """

    size: int = 4
    every: int = 25
    stride: int = 1
    decay: Literal["none", "linear", "exponential"] = "none"
    skip_last: int = 1

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("every", 1), ("stride", 0), ("skip_last", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def check(self, total: int) -> None:
        if self.size + self.skip_last > total:
            raise ValueError(f"size {self.size} and skip_last {self.skip_last} must fit in {total} steps")

    def _places(self, total: int) -> range:
        """The first steps it takes in turn."""
        return range(0, total - self.skip_last - self.size + 1, self.stride) if self.stride else range(1)

    def _stay(self, first: int, last: int) -> int:
        """Iterations spent at a place."""
        if self.decay == "linear":
            done = first / max(last, 1)
            return max(1, int(self.every * (1 - done) + done))
        if self.decay == "exponential":
            return math.ceil(self.every * math.exp(-0.1 * max(0, first - 13)))
        return self.every

    def reach(self, total: int) -> range:
        return range(self._places(total)[-1] + self.size)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        places = self._places(total)
        stays = [self._stay(first, places[-1]) for first in places]
        now = iteration % sum(stays)
        first = places[bisect.bisect_right(list(itertools.accumulate(stays)), now)]
        return range(first, first + self.size)


@dataclass(frozen=True)
class Subset:
    """A random ``share`` of the steps but the last ``skip_last`` (DanceGRPO), drawn once an iteration.

    With a noisy ``plan.outside`` the others are noisy too and only not trained, as published.
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
        """A closed window fits everywhere."""

    def reach(self, total: int) -> range:
        return range(0)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        return self.reach(total)
