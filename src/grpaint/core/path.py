"""Noising paths: x = alpha * x0 + sigma * eps, with eps ~ N(0, I).

A path maps a model time ``t`` to a :class:`Point` and gives the grid of points that a sampler visits. All other
code reads ``alpha`` and ``sigma`` only, so that it is the same for flow and diffusion models.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from grpaint.core.levels import Levels, spread_levels

TRAIN_STEPS = 1000  # the training timesteps of flows and, unless their settings differ, of diffusion models
DISTILLED_STEPS = 50  # the timesteps on which latent consistency models are distilled


class Point(NamedTuple):
    """A point on a path: floats on a sampler's grid, tensors ``[b, 1, ..]`` if rows differ.

    ``t`` is the network's time input: sigma for flows, the discrete timestep for diffusion models.
    """

    t: Any
    alpha: Any
    sigma: Any

    @property
    def level(self) -> Any:
        """Noise level sigma / (alpha + sigma): the flow time of equal signal-to-noise ratio; sigma itself on flows."""
        return self.sigma / (self.alpha + self.sigma)


class Path(Protocol):
    """A noising path, and the points on it that a sampler visits."""

    @property
    def start_std(self) -> float:
        """Standard deviation of the noise that sampling starts from."""

    def at(self, t: float | Tensor) -> Point:
        """Return the point at model time ``t``."""

    def times(self, uniform: Tensor) -> Tensor:
        """Map uniform draws in [0, 1) to model times for training."""

    def grid(self, steps: int) -> tuple[Point, ...]:
        """Return ``steps + 1`` points from noise to data."""

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        """Return ``parts + 1`` points from ``grid(steps)[first]`` to data, evenly spaced in time before any shift."""


def _check_steps(steps: int, maximum: int) -> None:
    if not 1 <= steps <= maximum:
        raise ValueError(f"steps must lie in 1..{maximum}, got {steps}")


def _check_listed(sigmas: tuple[float, ...], steps: int) -> None:
    if steps != len(sigmas):
        raise ValueError(f"steps must be {len(sigmas)}, as many as model.sigmas lists, got {steps}")


@dataclass(frozen=True)
class FlowPath:
    """Rectified flow: alpha = 1 - sigma, t = sigma in [0, 1].

    ``shift`` moves steps towards noise: sigma = shift * u / (1 + (shift - 1) * u). SD3 and the FLUX recipes of
    DanceGRPO and MixGRPO use shift 3. ``spacing``:

    - ``"linear"``: u = 1, 1 - 1/T, .., 0 (DanceGRPO, MixGRPO, the embedded model).
    - ``"sd3"``: the grid of diffusers' FlowMatchEulerDiscreteScheduler with a static shift: T values from 1 down to
      the *already shifted* smallest sigma of 1000 training steps, shifted a second time, then 0. The last sigma before
      the 0 is therefore almost zero (T = 10, shift 3: .., .2781, .0089, 0).

    ``terminal`` above 0 rescales the sigmas so that the last one before the 0 equals it (Qwen-Image: 0.02).
    ``levels`` other than "timesteps" spreads the sigmas anew between the first and that last one; see
    :func:`~grpaint.core.levels.spread_levels`. ``sigmas``: what replaces the u of ``spacing``; a grid then has as many
    steps.
    """

    shift: float = 1.0
    spacing: Literal["linear", "sd3"] = "linear"
    terminal: float = 0.0
    levels: Levels = "timesteps"
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if not 0 <= self.terminal < 1:
            raise ValueError(f"terminal must lie in [0, 1), got {self.terminal}")

    @property
    def start_std(self) -> float:
        return 1.0

    def _shift(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def at(self, t: float | Tensor) -> Point:
        return Point(t, 1 - t, t)

    def times(self, uniform: Tensor) -> Tensor:
        return uniform

    def _grid_times(self, steps: int) -> list[float]:
        if self.sigmas:
            _check_listed(self.sigmas, steps)
            return list(self.sigmas)
        _check_steps(steps, TRAIN_STEPS)
        if self.spacing == "linear":
            return [1 - i / steps for i in range(steps)]
        low = self._shift(1 / TRAIN_STEPS)
        return [1 + (low - 1) * i / max(steps - 1, 1) for i in range(steps)]

    def _rescale(self, sigmas: list[float], start: float) -> list[float]:
        """Map ``sigmas`` linearly so that they run from ``start`` to ``terminal``."""
        if not self.terminal or len(sigmas) == 1:
            return [start, *sigmas[1:]]
        scale = (start - self.terminal) / (sigmas[0] - sigmas[-1])
        return [start - (sigmas[0] - s) * scale for s in sigmas]

    def _noisy_sigmas(self, steps: int) -> list[float]:
        sigmas = self._rescale([self._shift(u) for u in self._grid_times(steps)], 1.0)
        return self._spread(sigmas)

    def _spread(self, sigmas: list[float]) -> list[float]:
        if self.levels == "timesteps":
            return sigmas
        return spread_levels(self.levels, sigmas[0], sigmas[-1], len(sigmas))

    def grid(self, steps: int) -> tuple[Point, ...]:
        return tuple(self.at(s) for s in [*self._noisy_sigmas(steps), 0.0])

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        u, start = self._grid_times(steps)[first], self._noisy_sigmas(steps)[first]
        if self.levels != "timesteps":
            u = start / (self.shift - (self.shift - 1) * start)  # the time that is shifted to this sigma
        sigmas = [self._shift(u * (1 - i / parts)) for i in range(parts)]
        return tuple(self.at(s) for s in [*self._rescale(sigmas, start), 0.0])


@dataclass(frozen=True)
class VpPath:
    """Variance-preserving diffusion: alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t), at ``train_steps`` timesteps t.

    ``betas`` "scaled-linear" from 0.00085 to 0.012 is Stable Diffusion's schedule; its alpha ends at 0.068, so pure
    noise is slightly off the path. "cosine" (Nichol & Dhariwal 2021, betas capped at 0.999) ends at 5e-5.
    ``terminal``: the last alpha after a rescaling that keeps the first one (zero terminal SNR, Lin et al. 2023); None
    is no rescaling.

    ``spacing`` and ``offset`` are diffusers' timestep_spacing and steps_offset ("leading" adds the offset); "distilled"
    takes its steps from the 50 timesteps on which LCM and TCD are trained: 999, 979, .., 19 of 1000.
    ``final`` is the signal level of the last point: "first" is abar_0 (``set_alpha_to_one=False``), "one" clean data.

    ``continuous``: timesteps may lie between the trained ones, where the level sigma / alpha is interpolated (Euler).
    There ``final`` "first" divides the last point by its alpha, as Euler's pipelines leave it.
    ``levels`` other than "timesteps" spreads these levels anew between those of the first and last timestep, or between
    the ``ends`` (highest, lowest); see :func:`~grpaint.core.levels.spread_levels`. ``scaled_start``: sampling starts
    from noise times the sigma of the first point, as Euler's pipelines do with trailing and linspace spacing.
    ``sigmas``: levels sigma / alpha that replace all these; a grid then has as many steps.
    """

    betas: Literal["scaled-linear", "linear", "cosine"] = "scaled-linear"
    first_beta: float = 0.00085
    last_beta: float = 0.012
    terminal: float | None = None
    spacing: Literal["leading", "trailing", "linspace", "distilled"] = "leading"
    offset: int = 1
    final: Literal["first", "one"] = "first"
    continuous: bool = False
    levels: Levels = "timesteps"
    ends: tuple[float | None, float | None] = (None, None)
    scaled_start: bool = False
    sigmas: tuple[float, ...] = ()
    train_steps: int = TRAIN_STEPS

    @cached_property
    def abar(self) -> tuple[float, ...]:
        """Cumulative products of 1 - beta: ``train_steps`` numbers in double precision."""
        n = self.train_steps
        if self.betas == "cosine":
            bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
            betas = [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n)]
        else:
            power = 2 if self.betas == "scaled-linear" else 1
            ends = self.first_beta ** (1 / power), self.last_beta ** (1 / power)
            betas = [(ends[0] + (ends[1] - ends[0]) * i / (n - 1)) ** power for i in range(n)]
        products, product = [], 1.0
        for beta in betas:
            product *= 1 - beta
            products.append(product)
        if self.terminal is None:
            return tuple(products)
        first, last = products[0] ** 0.5, products[-1] ** 0.5
        rescaled = [((product**0.5 - last) * first / (first - last)) ** 2 for product in products[:-1]]
        return (*rescaled, self.terminal**2)

    @cached_property
    def _abar_table(self) -> Tensor:
        return torch.tensor(self.abar, dtype=torch.float64)

    @cached_property
    def _trained_levels(self) -> list[float]:
        """Levels sigma / alpha of the timesteps; they rise."""
        return [(1 / signal - 1) ** 0.5 if signal else math.inf for signal in self.abar]

    @property
    def start_std(self) -> float:
        return self.grid(len(self.sigmas) or 1)[0].sigma if self.scaled_start else 1.0

    def at(self, t: float | Tensor) -> Point:
        """Round ``t`` to a timestep; for a tensor, alpha and sigma are fp32 (fp64 for fp64) on its device."""
        if isinstance(t, Tensor):
            dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
            abar = self._abar_table[t.detach().cpu().round().long()]
            return Point(t, abar.sqrt().to(t.device, dtype), (1 - abar).sqrt().to(t.device, dtype))
        signal = self.abar[round(t)]
        return Point(t, signal**0.5, (1 - signal) ** 0.5)

    def times(self, uniform: Tensor) -> Tensor:
        return (uniform * self.train_steps).long().clamp(max=self.train_steps - 1)

    def timesteps(self, steps: int) -> Sequence[float]:
        """Return the timesteps at which a sampler of ``steps`` steps evaluates the network, from noise to data."""
        n = self.train_steps
        _check_steps(steps, {"leading": n - 1, "distilled": DISTILLED_STEPS}.get(self.spacing, n))
        if self.spacing == "leading":
            return [i * (n // steps) + self.offset for i in reversed(range(steps))]
        if self.spacing == "trailing":
            return [round(n - i * n / steps) - 1 for i in range(steps)]
        if self.spacing == "distilled":
            every = n // DISTILLED_STEPS
            return [(DISTILLED_STEPS - i * DISTILLED_STEPS // steps) * every - 1 for i in range(steps)]
        even = [(n - 1) * (1 - i / max(steps - 1, 1)) for i in range(steps)]
        return even if self.continuous else [round(t) for t in even]

    @property
    def _end(self) -> Point:
        if self.final == "one":
            return Point(0, 1.0, 0.0)
        return Point(0, 1.0, self._trained_levels[0]) if self.continuous else self.at(0)

    def _place(self, t: float) -> Point:
        """The point at ``t``, between timesteps if the path is continuous."""
        low = int(t)
        if low == t or not self.continuous:
            return self.at(round(t))
        below, above = self._trained_levels[low : low + 2]
        return _at_level(t, below + (t - low) * (above - below))

    def _of_level(self, level: float) -> Point:
        """The point of a level sigma / alpha, whose timestep is interpolated in the level's logarithm."""
        levels = self._trained_levels
        low = min(max(bisect_right(levels, level) - 1, 0), len(levels) - 2)
        part = math.log(level / levels[low]) / math.log(levels[low + 1] / levels[low])
        return _at_level(low + min(max(part, 0.0), 1.0), level)

    def grid(self, steps: int) -> tuple[Point, ...]:
        if self.sigmas:
            _check_listed(self.sigmas, steps)
            return (*map(self._of_level, self.sigmas), self._end)
        points = [self._place(t) for t in self.timesteps(steps)]
        if self.levels != "timesteps":
            high, low = (point.sigma / point.alpha for point in (points[0], points[-1]))
            high, low = self.ends[0] or high, self.ends[1] or low
            points = [self._of_level(level) for level in spread_levels(self.levels, high, low, steps)]
        return (*points, self._end)

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        start = self.grid(steps)[first]
        end = 0 if self.final == "first" else -1  # clean data count as timestep -1
        times = (max(0, start.t + (end - start.t) * i / parts) for i in range(1, parts))
        return (start, *(self._place(t if self.continuous else round(t)) for t in times), self._end)


def _at_level(t: float, level: float) -> Point:
    """The variance-preserving point with sigma / alpha = ``level``."""
    alpha = 1 / math.hypot(1, level)
    return Point(t, alpha, level * alpha)
