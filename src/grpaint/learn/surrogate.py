"""What is minimised in place of the expected reward, one number a row."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpaint.core.step import Gaussian
from grpaint.rollout.rollout import Transition


class Surrogate(Protocol):
    """The new distribution of a stored action, and the action's advantage, to a loss."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        """One loss a row."""

    def clipped(self, ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Rows whose gradient the surrogate stops."""


def log_ratio(gaussian: Gaussian, transition: Transition) -> Float[Tensor, " k"]:
    """Log pi_new(action) - log pi_old(action), per element: the D-th root of the true ratio."""
    return gaussian.log_prob(transition.x_next) - transition.logp


@dataclass(frozen=True)
class PpoClip:
    """PPO's clipped surrogate: max(-A r, -A clip(r, 1 - low, 1 + high)).

    Ranges are in the unit of the mean-over-elements ratio: 1e-4 in DDPO, Flow-GRPO, DanceGRPO and MixGRPO. With one
    update a rollout the ratio is 1 and nothing is clipped.
    """

    low: float = 1e-4
    high: float = 1e-4

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        ratio = log_ratio(gaussian, transition).exp()
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - self.low, 1 + self.high))

    def clipped(self, ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        return ((advantage > 0) & (ratio > 1 + self.high)) | ((advantage < 0) & (ratio < 1 - self.low))


@dataclass(frozen=True)
class Reinforce:
    """The plain policy gradient, -A log pi (Williams 1992): right only while the policy is the one that sampled."""

    def __call__(
        self, gaussian: Gaussian, transition: Transition, advantage: Float[Tensor, " k"], /
    ) -> Float[Tensor, " k"]:
        return -advantage * gaussian.log_prob(transition.x_next)

    def clipped(self, ratio: Float[Tensor, " k"], advantage: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
        return torch.zeros_like(ratio, dtype=torch.bool)
