"""DPM-Solver++(2M) for the noise-free steps after a window (Lu et al. 2022; MixGRPO-Flash, arXiv 2507.21802)."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grpaint.core.path import Path, Point
from grpaint.core.prediction import Prediction, plus
from grpaint.core.step import Ode, step


@dataclass(frozen=True)
class Tail:
    """The ``[plan.tail]`` table: what follows a window, in ``ceil(steps left * ratio)`` steps that end at clean data.

    ``order`` 2 is the multistep midpoint form; its first step, with nothing to look back on, and a last one to sigma 0
    are of order 1, which is the ODE step. The public code looks back into the noisy window too; here a step never looks
    back on noise that the policy is credited for.
    """

    ratio: float = 0.4
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")

    def points(self, path: Path, steps: int, first: int) -> tuple[Point, ...]:
        """The points from ``grid(steps)[first]``, where the window closes, to data."""
        parts = max(1, math.ceil(round((steps - first) * self.ratio, 9)))
        return path.tail(steps, first, parts)


def _half_log_snr(place: Point) -> float:
    return math.log(place.alpha / place.sigma)


def multistep(
    prediction: Prediction, before: tuple[Tensor, Point] | None, here: Point, there: Point, order: int = 2
) -> Tensor:
    """The latent at ``there`` by DPM-Solver++(2M, midpoint).

    ``before``: the clean prediction of the step before and where it was made. Without it, at pure noise (alpha = 0)
    before, or where ``there`` is clean, this is the ODE step.
    """
    mean = step(Ode(), prediction, here, there).mean
    if before is None or order == 1 or not there.sigma > 0 or not before[1].alpha > 0:
        return mean
    x0, earlier = before
    length = _half_log_snr(there) - _half_log_snr(here)
    length_before = _half_log_snr(here) - _half_log_snr(earlier)
    weight = (there.alpha - here.alpha * there.sigma / here.sigma) * length / (2 * length_before)
    return plus(mean, weight, prediction.x0 - x0)
