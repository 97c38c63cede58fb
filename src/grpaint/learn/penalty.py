"""Penalties that keep a policy near its reference: one number per row, times the penalty's coefficient."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from grpaint.core.prediction import Prediction
from grpaint.core.step import per_row
from grpaint.rollout.records import StepOutput, Transition


class Penalty(Protocol):
    """A function that measures how far a step is from the reference policy's same step."""

    def __call__(self, current: StepOutput, reference: StepOutput, transition: Transition, /) -> tuple[Tensor, Tensor]:
        """Return two tensors ``[k]``: the loss, and the unscaled distance for the log."""


def _check_beta(beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")


@dataclass(frozen=True)
class StepKl:
    """beta * KL of the step's Gaussians (Flow-GRPO, mean over elements).

    ``scale = "published"`` multiplies by the step's length |dt| in sigma, as the public Flow-GRPO code does in effect,
    so that its betas (0.04, 0.01) apply here.
    """

    beta: float = 0.01
    scale: Literal["true", "published"] = "true"

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, current: StepOutput, reference: StepOutput, transition: Transition, /) -> tuple[Tensor, Tensor]:
        kl = current.gaussian.kl(reference.gaussian)
        length = 1.0 if self.scale == "true" else abs(transition.here.sigma - transition.there.sigma)
        return self.beta * length * kl, kl


def velocity_mse(one: Prediction, other: Prediction) -> Float[Tensor, " k"]:
    """Return the mean squared difference of the velocities eps - x0, per row."""
    return per_row(((one.eps - one.x0) - (other.eps - other.x0)) ** 2)


@dataclass(frozen=True)
class VelocityMse:
    """beta * mean squared difference of velocities eps - x0; weights all noise levels equally, unlike the step KL."""

    beta: float = 0.001

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, current: StepOutput, reference: StepOutput, transition: Transition, /) -> tuple[Tensor, Tensor]:
        distance = velocity_mse(current.prediction, reference.prediction)
        return self.beta * distance, distance


@dataclass
class AdaptiveKl:
    """The step KL with a beta that adapts so that the KL approaches ``target`` (Ziegler et al. 2019).

    After each iteration beta is multiplied by 1 + ``rate`` * clip(kl / target - 1, -0.2, 0.2).
    """

    target: float
    beta: float = 0.01
    rate: float = 0.5
    scale: Literal["true", "published"] = "true"
    _beta: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not self.target > 0:
            raise ValueError(f"target must be positive, got {self.target}")
        self._beta = self.beta

    def __call__(
        self, current: StepOutput, reference: StepOutput, transition: Transition, /
    ) -> tuple[Float[Tensor, " k"], Tensor]:
        return StepKl(self._beta, self.scale)(current, reference, transition)

    def observe(self, kl: float) -> None:
        """Adapt beta to an iteration's mean KL; ignores one that is not finite, from a skipped update."""
        if not math.isfinite(kl):
            return
        self._beta *= 1 + self.rate * min(max(kl / self.target - 1, -0.2), 0.2)

    def state_dict(self) -> dict[str, float]:
        """Return the current beta."""
        return {"beta": self._beta}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._beta = state["beta"]
