"""Statistics of a few seeds or prompts: confidence intervals, paired tests, and Holm's correction of p values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpaint.core.rng import uniform

NORMAL_95 = 1.959964


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's distribution with ``freedom`` degrees of freedom, by Simpson's rule."""
    # the density over [0, |t|] is mapped to an angle: with x = sqrt(n) tan(a) it becomes c * cos(a)^(n - 1) on
    # [0, atan(|t| / sqrt(n))]
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    end, pieces = math.atan(abs(t) / math.sqrt(freedom)), 400
    values = [
        math.cos(end * i / pieces) ** (freedom - 1) * (1 if i in (0, pieces) else 2 + 2 * (i % 2))
        for i in range(pieces + 1)
    ]
    half = scale * end / pieces / 3 * sum(values)
    return 0.5 + math.copysign(half, t)


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(T <= t) = ``level``, by bisection; ``level`` lies in (0.5, 1)."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and both ends of its 95% interval by Student's distribution; a single value is all three."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = t_quantile(0.975, len(values) - 1) * std / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t-test; 1 for a single value or a mean of 0, 0 if all differences are equal."""
    count = len(differences)
    mean = sum(differences) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in differences) / max(count - 1, 1))
    if count < 2 or not mean:
        return 1.0
    if spread <= 1e-9 * abs(mean):
        return 0.0
    return max(0.0, 2 * (1 - t_cdf(abs(mean) / spread * math.sqrt(count), count - 1)))


def bootstrap_interval(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval of the mean (percentiles); the resamples depend on the number of values alone."""
    values = torch.tensor(differences, dtype=torch.float64)
    count = len(values)
    rows = (uniform(("bootstrap", count), draws * count) * count).long().view(draws, count)
    low, high = values[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def resample_counts(count: int, draws: int) -> Tensor:
    """How often each of ``count`` items occurs in each resample with replacement, ``[draws, count]`` in float64.

    The resamples depend on the two numbers alone: all measures of the same images are resampled alike, so that their
    differences stay paired.
    """
    items = (uniform(("resamples", count), draws * count) * count).long().clamp(max=count - 1).view(draws, count)
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, items, torch.ones_like(items).double())


def percentile_interval(values: Tensor) -> list[float]:
    """The ends of the middle 95% of resampled values."""
    return values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def resampled_mean_interval(values: Tensor, draws: int) -> list[float]:
    """95% bootstrap interval of the mean of ``values`` (percentiles)."""
    return percentile_interval(resample_counts(len(values), draws) @ values.double() / len(values))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """The p values by name, adjusted for multiple tests by Holm's step-down method."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = worst
    return adjusted


def normal_interval(values: Tensor) -> list[float]:
    """Return the 95% interval of the mean of ``[b]`` values, by the normal approximation."""
    mean = values.double().mean().item()
    half = (
        NORMAL_95 * values.double().std(correction=1).item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    )
    if not math.isfinite(half):
        return [mean, mean]
    digits = _digits(half or mean, 5)
    return [round(mean - half, digits), round(mean + half, digits)]


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Return the mean difference over the same prompts and noise, and its 95% interval."""
    difference = torch.tensor(after) - torch.tensor(before)
    return difference.double().mean().item(), normal_interval(difference)


def rounded(values: Tensor) -> list[float]:
    """Round to four decimals, or more if the largest value is small."""
    digits = _digits(values.abs().max().item(), 4)
    return [round(value, digits) for value in values.tolist()]


def preference_entries(name: str, shares: Tensor) -> dict[str, Any]:
    """Return the entries of an evaluation's line for ``shares`` ``[b]``; NaN is no answer."""
    known = shares[~shares.isnan()]
    if not len(known):
        return {}
    entries: dict[str, Any] = {name: known.double().mean().item(), f"{name}_interval": normal_interval(known)}
    return entries | ({f"{name}_by_prompt": rounded(shares)} if len(known) == len(shares) else {})


def _digits(size: float, least: int) -> int:
    """Return the decimals that show four significant digits of a number of this size, at least ``least``."""
    return max(least, 3 - math.floor(math.log10(abs(size)))) if size else least
