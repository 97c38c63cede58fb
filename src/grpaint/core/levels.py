"""Lists of noise levels between two ends: Karras, exponential and beta spacing."""

import math
from typing import Literal

Levels = Literal["timesteps", "karras", "exponential", "beta"]


def spread_levels(kind: Levels, high: float, low: float, count: int) -> list[float]:
    """Return ``count`` levels from ``high`` down to ``low``.

    - ``"karras"``: evenly spaced in level^(1/7) (Karras et al. 2022, eq. 5).
    - ``"exponential"``: evenly spaced in the logarithm.
    - ``"beta"``: at the quantiles of a beta distribution with both parameters .6 (Lee et al. 2024, arXiv 2407.12173).

    Raises:
        ValueError: if ``kind`` is none of these.
    """
    shares = [i / max(count - 1, 1) for i in range(count)]  # of the way from high to low
    match kind:
        case "karras":
            ends = high ** (1 / 7), low ** (1 / 7)
            return [(ends[0] + share * (ends[1] - ends[0])) ** 7 for share in shares]
        case "exponential":
            return [math.exp(math.log(high) + share * math.log(low / high)) for share in shares]
        case "beta":
            return [low + _symmetric_beta_quantile(1 - share, 0.6) * (high - low) for share in shares]
    raise ValueError(f'levels must be "karras", "exponential" or "beta", got {kind!r}')


def _symmetric_beta_quantile(share: float, a: float) -> float:
    """The x in [0, 1] below which a beta distribution with both parameters ``a`` has the ``share`` of its mass."""
    if share > 0.5:
        return 1 - _symmetric_beta_quantile(1 - share, a)
    target = 2 * share * _incomplete_beta(0.5, a)
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _incomplete_beta(middle, a) < target else (low, middle)
    return high if share else 0.0


def _incomplete_beta(x: float, a: float) -> float:
    """The integral of (u (1 - u))^(a - 1) from 0 to ``x`` <= 1/2, by its power series."""
    total, factor = 0.0, 1.0
    for n in range(60):  # terms fall at least as fast as 2^-n
        total += factor / (a + n)
        factor *= (n + 1 - a) / (n + 1) * x
    return x**a * total
