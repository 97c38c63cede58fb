"""One denoising step as a Gaussian, and the samplers that define its mean and noise.

Every sampler here computes ``x' = alpha' * x0 + gain * eps + std * z`` with z ~ N(0, I), so a sampler is just the
two numbers ``(gain, std)``. If ``gain^2 + std^2 = sigma'^2``, a step ends with exactly the noise of its target level
(Ode, Ddim, Cps, Lcm); FlowSde and DanceSde are Euler-Maruyama steps and deviate by O(dt).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.prediction import Prediction


def mean_square(x: Float[Tensor, "b *latent"], y: Float[Tensor, "b *latent"]) -> Float[Tensor, " b"]:
    """Average (x - y)^2 over all dimensions but the first."""
    return per_row(F.mse_loss(x, y, reduction="none"))


def per_row(values: Float[Tensor, "b *latent"]) -> Float[Tensor, " b"]:
    """Average over all dimensions but the first."""
    return values.flatten(1).mean(1)


class Gaussian(NamedTuple):
    """Distribution of the next latent: an isotropic normal around ``mean`` ``[b, *latent]``."""

    mean: Tensor
    std: float

    def sample(self, noise: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *latent"]:
        """Compute the action for standard-normal ``noise``: mean + std * noise."""
        return self.mean + self.std * noise if self.std else self.mean

    def log_prob(self, x: Float[Tensor, "b *latent"]) -> Float[Tensor, " b"]:
        """Return the log density averaged (not summed) over elements, as in Flow-GRPO, DanceGRPO and DDPO.

        Raises:
            ValueError: if ``std`` is 0, since a deterministic step has no density.
        """
        if not self.std > 0:
            raise ValueError("a deterministic step (std = 0) has no log-probability")
        return -mean_square(self.mean, x) / (2 * self.std**2) - math.log(self.std) - 0.5 * math.log(2 * math.pi)

    def kl(self, other: "Gaussian") -> Float[Tensor, " b"]:
        """Return KL(self || other) averaged over elements.

        Raises:
            ValueError: if either ``std`` is 0.
        """
        if not (self.std > 0 and other.std > 0):
            raise ValueError("a deterministic step (std = 0) has no KL divergence")
        # the part that does not depend on the means, in double precision: exactly 0 if the stds are equal
        spread = (self.std / other.std) ** 2 / 2 + math.log(other.std / self.std) - 0.5
        return mean_square(self.mean, other.mean) / (2 * other.std**2) + spread


class Sampler(Protocol):
    """A function that gives the two coefficients of a step."""

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        """Return ``(gain on eps, std)`` of the step from ``here`` to ``there``."""


def step(sampler: Sampler, prediction: Prediction, here: Point, there: Point) -> Gaussian:
    """Return the distribution of the latent at ``there``: N(alpha' * x0 + gain * eps, std^2)."""
    gain, std = sampler(here, there)
    return Gaussian((there.alpha * prediction.x0).add_(prediction.eps, alpha=gain), std)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value:g}")


@dataclass(frozen=True)
class Ode:
    """The probability-flow step: Euler on a flow, DDIM with eta = 0 on a diffusion path."""

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        return there.sigma, 0.0


@dataclass(frozen=True)
class Ddim:
    """DDIM with eta (Song et al. 2020, eq. 16): std = eta * sigma'/sigma * sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2).

    On a VP path the root equals the published sqrt(1 - (alpha/alpha')^2); this form holds on flows too.

    eta = 1 is ancestral (DDPM) sampling, the sampler of DDPO (Black et al. 2023).
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check("eta", self.eta, 0, 1)

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        variance = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
        std = self.eta * there.sigma / here.sigma * max(variance, 0.0) ** 0.5
        return max(there.sigma**2 - std**2, 0.0) ** 0.5, std


@dataclass(frozen=True)
class Cps:
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952): std = sigma' * sin(eta * pi/2).

    eta = 0 is the ODE; eta = 1 replaces all of the predicted noise by fresh noise.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        _check("eta", self.eta, 0, 1)

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        angle = self.eta * math.pi / 2
        return there.sigma * math.cos(angle), there.sigma * math.sin(angle)


@dataclass(frozen=True)
class Lcm:
    """Re-noising of latent consistency models (arXiv 2310.04378): the predicted clean sample with fresh noise alone.

    gain = 0, std = sigma', so a step that ends at clean data is deterministic. This is the step of diffusers'
    LCMScheduler and FlowMatchLCMScheduler, except that the former replaces x0 by c_out x0 + c_skip x, where c_skip is
    at most 7e-6, and at most 2e-7 in eight steps or fewer.
    """

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        return 0.0, there.sigma


@dataclass(frozen=True)
class Annealed:
    """Re-noising with a temperature tau that falls with the noise (TAFS-GRPO, arXiv 2602.01591: our reconstruction).

    The predicted clean sample is noised to the next level; fresh noise makes up sin(tau * pi/2) of that noise. tau goes
    from ``first`` at pure noise to ``last`` at clean data, linearly in the noise level sigma' / (alpha' + sigma').
    Both lie in [0, 1]. tau = 1 throughout is :class:`Lcm`, tau = 0 the ODE.
    """

    first: float = 1.0
    last: float = 0.4

    def __post_init__(self) -> None:
        _check("first", self.first, 0, 1)
        _check("last", self.last, 0, 1)

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        level = there.sigma / (there.alpha + there.sigma)
        return Cps(self.last + (self.first - self.last) * level)(here, there)


def _euler_maruyama(g: float, here: Point, there: Point) -> tuple[float, float]:
    """Discretise dx = [v + g^2/(2 sigma) * eps] dt + g dW on a flow, with a step of length dt = sigma - sigma'."""
    if abs(here.alpha + here.sigma - 1) > 1e-6:
        raise ValueError("this sampler is for flows (alpha + sigma = 1); on a diffusion path use ddim or cps")
    std = g * (here.sigma - there.sigma) ** 0.5
    return there.sigma - std**2 / (2 * here.sigma), std


@dataclass(frozen=True)
class FlowSde:
    """The SDE of Flow-GRPO (arXiv 2505.05470): g = eta * sqrt(sigma / (1 - sigma)).

    g diverges at pure noise. Only there, the denominator uses the next sigma of the grid, so that the first step has
    std = eta exactly. Flows only.
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        _check("eta", self.eta, 0, 10)

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        clamped = there.sigma if here.sigma >= 1 - 1e-6 else here.sigma
        return _euler_maruyama(self.eta * (here.sigma / (1 - clamped)) ** 0.5, here, there)


@dataclass(frozen=True)
class DanceSde:
    """The SDE of DanceGRPO (arXiv 2505.07818) on flows: constant g = eta."""

    eta: float = 0.3

    def __post_init__(self) -> None:
        _check("eta", self.eta, 0, 10)

    def __call__(self, here: Point, there: Point, /) -> tuple[float, float]:
        return _euler_maruyama(self.eta, here, there)
