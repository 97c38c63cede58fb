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
    """The ``[plan.tail]`` table: ``ceil(remaining steps * ratio)`` steps from the end of the window to clean data.

    ``order`` 2 is the multistep midpoint form. Its first step, which has no previous prediction, and a last step to
    sigma 0 are of order 1, the ODE step. The public code also uses the prediction of the last noisy step of the window;
    here the solver uses predictions of the noise-free tail only.
    """

    ratio: float = 0.4
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")

    def points(self, path: Path, steps: int, first: int) -> tuple[Point, ...]:
        """Return the points from ``grid(steps)[first]``, where the window closes, to data (ratio 1: the grid's)."""
        parts = max(1, math.ceil(round((steps - first) * self.ratio, 9)))
        return path.grid(steps)[first:] if parts == steps - first else path.tail(steps, first, parts)


def _half_log_snr(point: Point) -> float:
    return math.log(point.alpha / point.sigma)


def multistep(
    prediction: Prediction, previous: tuple[Tensor, Point] | None, here: Point, there: Point, order: int = 2
) -> Tensor:
    """Compute the latent at ``there`` by DPM-Solver++(2M, midpoint).

    ``previous``: the predicted clean sample of the step before and its point. Without it, or if its point is pure noise
    (alpha = 0), or if ``there`` is clean, this is the ODE step.
    """
    mean = step(Ode(), prediction, here, there).mean
    if previous is None or order == 1 or not there.sigma > 0 or not previous[1].alpha > 0:
        return mean
    previous_x0, previous_point = previous
    length = _half_log_snr(there) - _half_log_snr(here)
    previous_length = _half_log_snr(here) - _half_log_snr(previous_point)
    weight = (there.alpha - here.alpha * there.sigma / here.sigma) * length / (2 * previous_length)
    return plus(mean, weight, prediction.x0 - previous_x0)
