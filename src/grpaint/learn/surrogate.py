"""What is minimised in place of the expected reward, one number a row."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpaint.core.step import Gaussian, per_row
from grpaint.rollout.rollout import Transition


class Surrogate(Protocol):
    """The new distribution of a stored action, and the action's advantage, to a loss."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        """One loss a row."""


@runtime_checkable
class Clips(Protocol):
    """A surrogate that stops gradients, and says which; a plain function need not."""

    def clipped(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Bool[Tensor, " k"]:
        """Rows whose gradient the surrogate stops."""


def log_ratio(gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
    """Log pi_new(action) - log pi_old(action), per element: the D-th root of the true ratio."""
    return gaussian.log_prob(transition.x_next) - transition.logp


def clip_loss(
    ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"], low: float, high: float
) -> Float[Tensor, " k"]:
    """PPO's max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


def clip_stops(
    ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"], low: float, high: float
) -> Bool[Tensor, " k"]:
    """Rows whose gradient :func:`clip_loss` stops."""
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))


def check_clip(low: float, high: float) -> None:
    """Refuse ranges that leave no room."""
    for name, value in (("low", low), ("high", high)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class PpoClip:
    """PPO's clipped surrogate: max(-A r, -A clip(r, 1 - low, 1 + high)).

    Ranges are in the unit of the mean-over-elements ratio: 1e-4 in DDPO, Flow-GRPO, DanceGRPO and MixGRPO. With one
    update a rollout the ratio is 1 and nothing is clipped.
    """

    low: float = 1e-4
    high: float = 1e-4

    def __post_init__(self) -> None:
        check_clip(self.low, self.high)

    def ratio(self, gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
        """Of new to old densities of the stored action."""
        return log_ratio(gaussian, transition).exp()

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        return clip_loss(self.ratio(gaussian, transition), advantage, self.low, self.high)

    def clipped(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Bool[Tensor, " k"]:
        return clip_stops(self.ratio(gaussian, transition), advantage, self.low, self.high)


@dataclass(frozen=True)
class Guard(PpoClip):
    """GRPO-Guard (arXiv 2510.22319): a ratio centred on 1 at every step, and steps weighted alike.

    log r = std * (log-ratio + mean (mu - mu_old)^2 / (2 std^2)), which with the noise z of the action is
    mean z (mu - mu_old): no bias, one spread for all steps. The loss is divided by the step's length |dt|. Ranges are
    in the unit of this ratio, 2e-6 to 1e-5 in published settings.
    """

    low: float = 4e-6
    high: float = 4e-6

    def ratio(self, gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
        noise = (transition.x_next - transition.mean) / transition.std
        return per_row(noise * (gaussian.mean - transition.mean)).exp()

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        length = abs(transition.here.level - transition.there.level)
        return clip_loss(self.ratio(gaussian, transition), advantage, self.low, self.high) / length


@dataclass(frozen=True)
class Reinforce:
    """The plain policy gradient, -A log pi (Williams 1992): right only while the policy is the one that sampled."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        return -advantage * gaussian.log_prob(transition.x_next)
