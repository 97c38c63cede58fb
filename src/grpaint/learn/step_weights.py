"""Weights of the trained steps in the loss of a likelihood method: each step's part of the gradient is made alike."""

from typing import Literal

from grpaint.core.path import Point
from grpaint.core.step import Sampler
from grpaint.rollout.rollout import Rollout

StepWeights = Literal["equal", "noise", "gradient"]


def step_weights(kind: StepWeights, rollout: Rollout) -> list[float]:
    """Return a weight for each step that a rollout has recorded; the mean over the window's reach is 1.

    By the network's velocity, eps - x0, the gradient of a step's log-density is proportional to |d mean / d velocity|
    over the step's std, which differs by orders of magnitude between steps. "equal" leaves it as it is. "noise" weighs
    a step by its std, for Flow-SDE the noise level times the root of the step's length (TempFlow-GRPO, arXiv
    2508.04324, eq. 8). "gradient" divides by the size itself, so that all steps have the same one (Flash-GRPO, arXiv
    2605.15980).
    """
    if kind == "equal":
        return [1.0] * len(rollout.transitions)
    sizes = [_size(kind, rollout.sampler, here, there) for here, there in rollout.reach]
    mean = sum(sizes) / max(len(sizes), 1)
    return [_size(kind, rollout.sampler, t.here, t.there) / mean for t in rollout.transitions]


def _size(kind: StepWeights, sampler: Sampler, here: Point, there: Point) -> float:
    """Return a step's std, or that over |d mean / d velocity|; x0 = (x - sigma v) / (alpha + sigma), eps = x0 + v."""
    gain, std = sampler(here, there)
    if kind == "noise":
        return std
    return std * (here.alpha + here.sigma) / abs(gain * here.alpha - there.alpha * here.sigma)
