"""Surrogate losses, minimised in place of minus the expected reward: one number per row."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpaint.core.bounds import Limit, check_positive
from grpaint.core.step import Gaussian, per_row
from grpaint.rollout.rollout import Transition


class Surrogate(Protocol):
    """A function from the current distribution of a stored action, and its advantage, to a loss."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        """Return one loss per row."""


@runtime_checkable
class ClippingSurrogate(Protocol):
    """A surrogate that also reports which rows it clips; this is optional."""

    def clipped(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Bool[Tensor, " k"]:
        """Return whether each row's gradient is clipped to 0."""


def log_ratio(gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
    """Return log pi_new(action) - log pi_old(action), averaged over D elements: log of the ratio's D-th root."""
    return gaussian.log_prob(transition.x_next) - transition.logp


def clip_loss(
    ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"], low: float, high: float
) -> Float[Tensor, " k"]:
    """Compute PPO's loss max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


def clip_stops(
    ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"], low: float, high: float
) -> Bool[Tensor, " k"]:
    """Return the rows whose gradient :func:`clip_loss` clips to 0."""
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))


@dataclass(frozen=True)
class PpoClip:
    """PPO's clipped loss for advantage A and ratio r, per row: max(-A r, -A clip(r, 1 - low, 1 + high)).

    r is the exponential of the log-density difference averaged over elements, so the ranges are small: 1e-4 in DDPO,
    Flow-GRPO, DanceGRPO and MixGRPO. With one update per rollout, sampled by the current weights, r is 1.
    """

    low: Limit = 1e-4
    high: Limit = 1e-4

    def __post_init__(self) -> None:
        check_positive(low=self.low, high=self.high)

    def ratio(self, gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
        """Return the ratio of new to old density of the stored action, per row."""
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
    """GRPO-Guard (arXiv 2510.22319): a ratio centred on 1 at every step, and equal weight for all steps.

    log r = std * (log-ratio + mean (mu - mu_old)^2 / (2 std^2)), where ``mean`` is over elements. With the noise
    z = (x_next - mu_old) / std of the action it equals mean z (mu - mu_old): unbiased, with the same spread at every
    step. The loss is divided by |dt|, the length of the step in time. ``low`` and ``high`` clip this ratio; published
    settings use 2e-6 to 1e-5.
    """

    low: Limit = 4e-6
    high: Limit = 4e-6

    def ratio(self, gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
        noise = (transition.x_next - transition.mean) / transition.std
        return per_row(noise * (gaussian.mean - transition.mean)).exp()

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        length = abs(transition.here.level - transition.there.level)
        return clip_loss(self.ratio(gaussian, transition), advantage, self.low, self.high) / length


@dataclass(frozen=True)
class DivergenceMask:
    """Flow-DPPO (arXiv 2606.11025): a trust region by divergence, not by the ratio of one action.

    The loss is -A r, with r the ratio of :class:`PpoClip`. A row gives no gradient if KL(old || new), averaged over
    elements, is above ``limit`` and the update would move it farther still, which is where A (r - 1) > 0. A ratio says
    how the density of one drawn action has changed, and varies with that draw; the divergence is that of the step.
    Published settings use 1e-6 to 1e-5.
    """

    limit: Limit = 1e-6

    def __post_init__(self) -> None:
        check_positive(limit=self.limit)

    def clipped(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Bool[Tensor, " k"]:
        divergence = Gaussian(transition.mean, transition.std).kl(gaussian)
        return (divergence > self.limit) & (advantage * log_ratio(gaussian, transition) > 0)

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        loss = -advantage * log_ratio(gaussian, transition).exp()
        return torch.where(self.clipped(gaussian, transition, advantage), loss.detach(), loss)


@dataclass(frozen=True)
class Reinforce:
    """The plain policy gradient, -A log pi (Williams 1992): valid only while the policy is the one that sampled."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        return -advantage * gaussian.log_prob(transition.x_next)
