"""Which steps of a rollout are noisy, and therefore trained. Steps are counted from pure noise, 0 .. steps - 1."""

from dataclasses import dataclass
from typing import Protocol

from grpaint.core.rng import uniform


class Window(Protocol):
    """Chooses the noisy steps of an iteration."""

    def steps(self, total: int, iteration: int, seed: int) -> range:
        """The noisy steps among ``total``, a function of its arguments alone."""

    def reach(self, total: int) -> range:
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
class Closed:
    """No step is noisy: a deterministic rollout, for evaluation and for objectives without a likelihood."""

    def check(self, total: int) -> None:
        """A closed window fits everywhere."""

    def reach(self, total: int) -> range:
        return range(0)

    def steps(self, total: int, iteration: int, seed: int) -> range:
        return self.reach(total)
