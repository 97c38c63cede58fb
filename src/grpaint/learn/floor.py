"""A constraint that keeps a reward from falling below the base model's score."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from grpaint.core.bounds import Limit


@dataclass
class Floor:
    """Keep the mean reward at or above the base model's; the ``multiplier`` is added to the reward's weight.

    The base's mean and spread are those of the first iteration's images, which the base made. After each later one

        running    = keep * running + (1 - keep) * mean
        multiplier = clip(multiplier + rate * (base - running) / spread, 0, most)

    which is projected dual ascent on a Lagrangian: it rises while the running mean is below the base's, falls while it
    is above, and is 0 if the constraint does not bind. Dividing by ``spread`` makes it independent of the unit.
    """

    rate: float = 0.5
    keep: float = 0.7
    most: Limit = 10.0
    multiplier: float = field(default=0.0, init=False)
    base: float | None = field(default=None, init=False)
    _running: float = field(default=0.0, init=False, repr=False)
    _spread: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep must lie in [0, 1), got {self.keep}")
        if not self.most > 0:
            raise ValueError(f"most must be positive, got {self.most}")

    def observe(self, scores: Float[Tensor, " b"]) -> None:
        """Update with an iteration's scores, of the rows to which the reward applies."""
        if not len(scores):
            return
        mean, spread = scores.double().mean().item(), scores.double().std(correction=0).item()
        if self.base is None:
            self.base = self._running = mean
            self._spread = spread or 1.0  # 1 if the base's scores are all equal
            return
        self._running = self.keep * self._running + (1 - self.keep) * mean
        step = self.rate * (self.base - self._running) / self._spread
        self.multiplier = min(max(self.multiplier + step, 0.0), self.most)

    def state_dict(self) -> dict[str, float | None]:
        """Return the multiplier and the statistics."""
        return {
            "multiplier": self.multiplier,
            "base": self.base,
            "running": self._running,
            "spread": self._spread,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.multiplier, self.base = state["multiplier"], state["base"]
        self._running, self._spread = state["running"], state["spread"]
