"""Objectives: they yield terms that sum to the loss, and the loop calls backward on each to free its graph."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.bounds import ROWS, Limit, check_range
from grpaint.core.errors import RunError
from grpaint.core.path import Point
from grpaint.core.policy import Policy, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.rng import noise, uniform
from grpaint.core.step import per_row
from grpaint.learn.penalty import Penalty
from grpaint.learn.step_weights import StepWeights, step_weights
from grpaint.learn.surrogate import ClippingSurrogate, PpoClip, Surrogate, log_ratio
from grpaint.rollout.rollout import Rollout, Transition, act

Target = Literal["velocity", "epsilon", "v"]
Times = Literal["uniform", "logit-normal"]


class Term(NamedTuple):
    """A summand of the loss: a scalar ``loss``, ``measures`` ``[k]`` by metric name, and its step (-1: none)."""

    loss: Tensor
    measures: dict[str, Tensor]
    step: int = -1


class Objective(Protocol):
    """A function from a policy, samples and their advantages to the terms of a loss."""

    def __call__(self, policy: Policy, rollout: Rollout, advantage: Tensor, /) -> Iterator[Term]:
        """Yield the terms in a fixed order."""


def check_minibatch(rows: int) -> None:
    """Raise ValueError for a negative number of rows."""
    if rows < 0:
        raise ValueError(f"minibatch must not be negative (0: all rows), got {rows}")


@dataclass(frozen=True)
class PolicyGradient:
    """The likelihood objective: every recorded step is taken again with current weights and weighted by its advantage.

    Rows with advantage 0 cost no model call, but the mean is over all rows. ``minibatch`` is the number of rows per
    autograd graph (0: all of a step); it changes memory use, not the gradient. ``terminal`` weights a term for the
    deterministic step after the last action, which has no likelihood: finished samples are noised to where that step
    began, and their restoration is trained in proportion to their advantage (the policy gradient on the ELBO).
    ``steps``: how the recorded steps are weighted, see :func:`~grpaint.learn.step_weights.step_weights`; the penalty is
    not.
    """

    surrogate: Surrogate = field(default_factory=PpoClip)
    penalty: Penalty | None = None
    minibatch: int = 0
    terminal: float = 0.0
    steps: StepWeights = "equal"

    def __post_init__(self) -> None:
        check_minibatch(self.minibatch)
        if not self.terminal >= 0:
            raise ValueError(f"terminal must not be negative, got {self.terminal}")

    def __call__(self, policy: Policy, rollout: Rollout, advantage: Tensor, /) -> Iterator[Term]:
        weights = step_weights(self.steps, rollout)
        for transition, weight in zip(rollout.transitions, weights, strict=True):
            gain = advantage[transition.rows] if advantage.ndim == 1 else advantage[transition.rows, transition.step]
            nonzero_rows = gain.nonzero()[:, 0]
            for index in nonzero_rows.split(self.minibatch or max(len(nonzero_rows), 1)) if len(nonzero_rows) else ():
                whole = len(index) == len(transition.rows)
                part = transition if whole else transition.take(index, transition.rows[index])
                yield self._term(policy, rollout, part, gain[index], weight)
        if self.terminal and rollout.transitions:
            last = rollout.transitions[-1]
            gain = advantage[last.rows] if advantage.ndim == 1 else advantage[last.rows, last.step]
            yield from self._terminal_terms(policy, rollout, last, gain)

    def _terminal_terms(self, policy: Policy, rollout: Rollout, last: Transition, gain: Tensor) -> Iterator[Term]:
        """Yield TAFS-GRPO's last step: E = -error of x0 at its noise level takes the place of the likelihood."""
        nonzero_rows = gain.nonzero()[:, 0]
        for index in nonzero_rows.split(self.minibatch or max(len(nonzero_rows), 1)) if len(nonzero_rows) else ():
            part = rollout.rows(last.rows[index])
            numbers = rollout.numbers[last.rows[index]]
            eps = policy.noise((rollout.seed, rollout.iteration, "terminal"), numbers)
            x = last.there.alpha * part.x0 + last.there.sigma * eps
            error = self_normalised(policy.predict(x, last.there, part.cond).x0 - part.x0)
            loss = self.terminal * gain[index].to(error.device) * error
            yield Term(loss.sum() / rollout.total, {"terminal": error.detach()})

    def _term(self, policy: Policy, rollout: Rollout, part: Transition, gain: Tensor, weight: float) -> Term:
        cond = rollout.cond.rows(part.rows)
        current = part.live or act(policy, rollout.sampler, part.x, part.here, part.there, cond)
        gain = gain.to(part.x.device)
        loss = weight * _check_per_row("surrogate", self.surrogate(current.gaussian, part, gain), len(gain))
        with torch.no_grad():
            ratio = log_ratio(current.gaussian, part).exp()
        measures = {"ratio_error": (ratio - 1).abs()}
        if isinstance(self.surrogate, ClippingSurrogate):
            with torch.no_grad():
                measures["clip_fraction"] = self.surrogate.clipped(current.gaussian, part, gain).float()
        if self.penalty:
            with torch.no_grad():
                reference = act(policy, rollout.sampler, part.x, part.here, part.there, cond, "reference")
            costs = self.penalty(current, reference, part)
            if not (isinstance(costs, tuple) and len(costs) == 2):
                raise RunError(
                    f"objective.penalty: it returned {type(costs).__name__}; it must return a loss and a distance."
                )
            cost, distance = (_check_per_row("penalty", values, len(gain)) for values in costs)
            loss, measures["kl"] = loss + cost, distance.detach()
        return Term(loss.sum() / rollout.actions, measures, part.step)


def _check_per_row(name: str, values: Any, rows: int) -> Float[Tensor, " k"]:
    """Raise unless a surrogate or penalty returned one value per row; another shape would broadcast unnoticed."""
    if isinstance(values, Tensor) and values.shape == (rows,):
        return values
    form = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise RunError(f"objective.{name}: it returned {form}; it must return one number per row: [{rows}].")


def self_normalised(error: Float[Tensor, "k *latent"]) -> Float[Tensor, " k"]:
    """Divide the mean square by the detached mean magnitude, so that errors of all noise levels are comparable."""
    return per_row(error**2) / per_row(error.detach().abs()).clamp(min=1e-5)


def matching_error(target: Target, prediction: Prediction, x0: Tensor, eps: Tensor, here: Point) -> Tensor:
    """Return the error in ``target`` of the prediction for ``x0`` noised to ``here`` with ``eps``, ``[k, *latent]``."""
    match target:
        case "velocity":
            return (prediction.eps - prediction.x0) - (eps - x0)
        case "epsilon":
            return prediction.eps - eps
        case "v":
            return here.alpha * (prediction.eps - eps) - here.sigma * (prediction.x0 - x0)


def distribute(draws: Tensor, times: Times, towards_noise: float) -> Tensor:
    """Map uniform draws in [0, 1) to draws of ``times``.

    "logit-normal" is the sigmoid of a normal around ``towards_noise``, with fewer at both ends (Esser et al. 2024).
    """
    if times == "uniform":
        return draws
    return (torch.special.ndtri(draws.clamp(1e-4, 1 - 1e-4)) + towards_noise).sigmoid()


@dataclass(frozen=True)
class Denoising:
    """The supervised loss on clean samples, at stratified times keyed by (seed, iteration).

    ``target``: squared error of the "velocity" (flows), of "epsilon" or of "v". ``snr_gamma`` caps the weight of nearly
    clean samples (min-SNR, Hang et al. 2023): min(snr, gamma) / snr for epsilon, / (snr + 1) for v. ``times`` and
    ``towards_noise``: see :func:`distribute`.
    """

    target: Target = "velocity"
    snr_gamma: Limit | None = None
    times: Times = "uniform"
    towards_noise: float = 0.0
    minibatch: int = 0

    def __post_init__(self) -> None:
        check_minibatch(self.minibatch)
        if self.snr_gamma is not None and self.target == "velocity":
            raise ValueError('snr_gamma needs target "epsilon" or "v"; a flow\'s velocity loss has no such weight')

    def __call__(self, policy: Policy, rollout: Rollout, advantage: Tensor, /) -> Iterator[Term]:
        count, key = rollout.count, (rollout.seed, rollout.iteration, "denoising")
        draws = ((torch.arange(count) + uniform(key, count)) / count)[rollout.numbers]
        times = policy.path.times(distribute(draws, self.times, self.towards_noise))
        # one noise tensor for the whole batch, so that ``minibatch`` does not change it
        eps = noise(key, rollout.numbers, rollout.x0.shape[1:]).to(rollout.x0.device)
        own = len(rollout.x0)
        for index in torch.arange(own).split(self.minibatch or own) if own else ():
            t = times[index].to(eps.device).view(-1, *[1] * (eps.ndim - 1))
            loss = self.loss(policy, rollout.rows(index), policy.path.at(t), eps[index])
            yield Term(loss.sum() / rollout.total, {"denoising": loss.detach()})

    def loss(
        self, policy: Policy, rollout: Rollout, here: Point, eps: Tensor, weights: Weights = "current"
    ) -> Float[Tensor, " b"]:
        """Return the weighted squared error of each row noised to ``here`` with ``eps``."""
        x0 = rollout.x0
        prediction = policy.predict(here.alpha * x0 + here.sigma * eps, here, rollout.cond, weights)
        error = matching_error(self.target, prediction, x0, eps, here)
        if self.snr_gamma is None:
            return per_row(error**2)
        snr = (here.alpha / here.sigma) ** 2
        cap = snr.clamp(max=self.snr_gamma)
        # at pure noise, where the snr may be 0, epsilon is known exactly: its error is 0 whatever the weight
        weight = cap / (snr.clamp(min=torch.finfo(snr.dtype).tiny) if self.target == "epsilon" else snr + 1)
        return per_row(error**2 * weight)


@dataclass(frozen=True)
class Anchor:
    """``weight`` times a supervised loss on ``batch`` captioned images, added to every update of a policy objective.

    The PPO-ptx term (Ouyang et al. 2022): it keeps what no reward measures, such as the style of the data, from
    drifting.
    """

    weight: float = 0.01
    batch: int = 32
    loss: Denoising = field(default_factory=Denoising)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be positive, got {self.weight}")
        check_range(self, 1, ROWS, "batch")

    def __call__(self, policy: Policy, captioned: Rollout) -> Iterator[Term]:
        """Yield the weighted terms of the supervised loss on captioned images."""
        for term in self.loss(policy, captioned, torch.zeros(len(captioned.x0))):
            yield Term(self.weight * term.loss, {"anchor": term.measures["denoising"]})
