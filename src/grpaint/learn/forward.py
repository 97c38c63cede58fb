"""Objectives on the forward process: finished samples are noised again, and no step's likelihood is used.

How well the network restores a noised sample stands in for the sample's likelihood. The current weights and the
weights that sampled are compared at the same draws of (t, eps), so that before the first update their difference is
exactly 0. Everything is written in ``Prediction(x0, eps)``: a mixture of two networks' outputs at one
``x`` is the same mixture of their x0, whatever they predict, so flows and diffusion models share this code.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpaint.core.bounds import Limit, check_positive, check_range
from grpaint.core.path import Path, Point
from grpaint.core.policy import Policy, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.rng import Key, permutation, uniform
from grpaint.core.step import per_row
from grpaint.learn.objective import (
    Target,
    Term,
    Times,
    check_minibatch,
    distribute,
    matching_error,
    self_normalised,
)
from grpaint.learn.penalty import velocity_mse
from grpaint.learn.surrogate import clip_loss, clip_stops
from grpaint.rollout.rollout import Plan, Rollout

Measures = dict[str, Tensor]
MOST_DRAWS = 1000  # every draw is a pass through the network; published settings use 1 to 4


class NoisedBatch(NamedTuple):
    """Samples ``x0`` noised to ``here`` with ``eps``, and what the current weights and those that sampled predict.

    ``behaviour``, of those that sampled, has no gradient; if the current ones did, it is ``current`` without its own.
    ``reference`` has none either, and is there if the objective needs it. ``group``: the number of each row's prompt.
    """

    x0: Float[Tensor, "k *latent"]
    eps: Float[Tensor, "k *latent"]
    here: Point
    group: Int[Tensor, " k"]
    current: Prediction
    behaviour: Prediction
    reference: Prediction | None


@dataclass(frozen=True, kw_only=True)
class ForwardObjective(ABC):
    """Base class of the objectives of this file.

    ``draws``: how often each sample is noised; ``noise``: whether every sample has noise of its "own", or the members
    of a "group" share it at every draw: what they have in common then cancels, since their advantages sum to 0.
    ``times`` and ``towards_noise``: see :func:`~grpaint.learn.objective.distribute`.
    ``kl_reference``: weight of the mean squared difference between the current and the reference velocities. Rows with
    advantage 0 cost no model call, but the mean is over all rows. ``minibatch`` is the number of rows per autograd
    graph (0: all); it changes memory use, not the gradient.
    """

    needs_reference: ClassVar[bool] = False
    needs_group: ClassVar[bool] = False  # whether the loss of a row depends on others of its group

    kl_reference: float = 1e-4
    draws: int = 2
    noise: Literal["own", "group"] = "own"
    times: Times = "uniform"
    towards_noise: float = 0.0
    minibatch: int = 0

    def __post_init__(self) -> None:
        check_minibatch(self.minibatch)
        check_range(self, 1, MOST_DRAWS, "draws")
        if not self.kl_reference >= 0:
            raise ValueError(f"kl_reference must not be negative, got {self.kl_reference}")

    def evaluations(self, weights: Weights) -> int:
        """Return the model evaluations per row and update, if ``weights`` sampled the rows: one less if "current"."""
        return self.draws * (3 + (weights != "current") + bool(self.kl_reference or self.needs_reference))

    @abstractmethod
    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        """Return the method's loss per row, and measures to record."""

    def check(self, plan: Plan) -> None:
        """Check that a plan's rollouts suit these objectives.

        Raises:
            ValueError: if they do not; the message names the key, the reason and the fix.
        """
        if plan.window.reach(plan.steps):
            raise ValueError(
                "plan.window: this objective uses finished images and no step's likelihood, so noisy steps would be "
                'recorded for nothing; use plan.window = { kind = "closed" }'
            )
        if plan.start.shared:
            raise ValueError(
                "plan.start: without noisy steps, images of a prompt that share their start noise are identical; "
                'use plan.start = { kind = "independent" }'
            )
        if plan.weights == "reference":
            raise ValueError(
                'plan.weights = "reference": this objective learns from samples of the current or the behaviour '
                'weights; use plan.weights = "current", or "behaviour" and a [behaviour] table'
            )

    def __call__(self, policy: Policy, rollout: Rollout, advantage: Tensor, /) -> Iterator[Term]:
        rows = self._rows(rollout, advantage)
        if not len(rows):
            return
        key = (rollout.seed, rollout.iteration, "forward")
        every_time = self._times(policy.path, key, rollout.count)
        time_numbers = self._time_numbers(rollout)
        for draw, times in enumerate(every_time):
            for index in self._minibatches(rollout, rows):
                noise_rows = rollout.group if self.noise == "group" else rollout.numbers
                eps = policy.noise((*key, draw), noise_rows[index])
                t = times[time_numbers[index]].to(eps.device).view(-1, *[1] * (eps.ndim - 1))
                loss, measures = self._row_losses(policy, rollout.rows(index), advantage[index], policy.path.at(t), eps)
                yield Term(loss.sum() / (self._count(rollout) * self.draws), measures)

    def _rows(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        """Return the rows that have a loss."""
        return advantage.nonzero()[:, 0]

    def _count(self, rollout: Rollout) -> float:
        """Return what the sum of all rows' losses is divided by."""
        return rollout.total

    def _minibatches(self, rollout: Rollout, rows: Tensor) -> Iterable[Tensor]:
        """Yield the rows of each autograd graph."""
        return rows.split(self.minibatch or len(rows))

    def _time_numbers(self, rollout: Rollout) -> Tensor:
        """Return, for each row, the number of the row whose times it has."""
        return rollout.numbers

    def _times(self, path: Path, key: Key, count: int) -> list[Tensor]:
        """Return the times of each draw of ``count`` rows."""
        draws = stratify(key, count, self.draws)
        return [path.times(distribute(draw, self.times, self.towards_noise)) for draw in draws]

    def _row_losses(
        self, policy: Policy, part: Rollout, advantage: Tensor, here: Point, eps: Tensor
    ) -> tuple[Tensor, Measures]:
        x = here.alpha * part.x0 + here.sigma * eps
        current = policy.predict(x, here, part.cond)
        behaviour = Prediction(current.x0.detach(), current.eps.detach())
        if part.weights != "current":
            with torch.no_grad():
                behaviour = policy.predict(x, here, part.cond, part.weights)
        reference = None
        if self.kl_reference or self.needs_reference:
            with torch.no_grad():
                reference = policy.predict(x, here, part.cond, "reference")
        batch = NoisedBatch(part.x0, eps, here, part.group, current, behaviour, reference)
        loss, measures = self.contrast(batch, advantage.to(eps.device))
        measures["behind"] = velocity_mse(current, behaviour).detach()
        if self.kl_reference and reference:
            distance = velocity_mse(current, reference)
            loss, measures["kl"] = loss + self.kl_reference * distance, distance.detach()
        return loss, measures


def stratify(key: Key, count: int, draws: int) -> list[Tensor]:
    """Draw ``draws`` numbers in [0, 1) for each of ``count`` rows, stratified over the rows and over a row's draws."""
    strata = (permutation(key, count) + uniform(key, count)) / count
    return [(strata + draw / draws) % 1 for draw in range(draws)]


@dataclass(frozen=True, kw_only=True)
class DiffusionNft(ForwardObjective):
    """Negative-aware fine-tuning (arXiv 2509.16117): an implicit positive and negative policy around the old one.

    x0+- = (1 -+ beta) x0_old +- beta x0_current; an advantage A becomes the probability r = (A / clip + 1) / 2 that a
    sample is good; loss = clip / beta * (r * error(x0+) + (1 - r) * error(x0-)), errors self-normalised in x0.
    """

    beta: float = 1.0
    clip: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(beta=self.beta, clip=self.clip)

    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        step = self.beta * (batch.current.x0 - batch.behaviour.x0)
        good = (advantage / self.clip).clamp(-1, 1) / 2 + 0.5
        positive, negative = (self_normalised(batch.behaviour.x0 + delta - batch.x0) for delta in (step, -step))
        return self.clip / self.beta * (good * positive + (1 - good) * negative), {}


@dataclass(frozen=True, kw_only=True)
class ElboPolicyGradient(ForwardObjective):
    """Policy gradient on the ELBO (arXiv 2602.04663): E = -self-normalised error of x0, in place of log-likelihood.

    With d = E - E_old and the stop-gradient sg: "epg" -sg(e^d) A E; "pepg" -sg(e^d) (A - sg d) E, which keeps the
    policy near the old one; "par" sg(e^d) (A - d)^2 / 2, which regresses d on A.
    """

    form: Literal["epg", "pepg", "par"] = "epg"

    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        predictions = (batch.current, batch.behaviour)
        elbo, elbo_old = (-self_normalised(prediction.x0 - batch.x0) for prediction in predictions)
        gap = elbo - elbo_old
        gap_constant = gap.detach()
        match self.form:
            case "epg":
                loss = -gap_constant.exp() * advantage * elbo
            case "pepg":
                loss = -gap_constant.exp() * (advantage - gap_constant) * elbo
            case "par":
                loss = gap_constant.exp() * (advantage - gap) ** 2 / 2
        return loss, {"log_ratio": gap_constant.abs()}


@dataclass(frozen=True, kw_only=True)
class AdvantageWeightedMatching(ForwardObjective):
    """Advantage weighted matching (arXiv 2509.25050): minus the pre-training loss takes the place of log-likelihood.

    l = -h(u) with u the mean squared error of ``target``. The loss is PPO's clipped surrogate on exp(l - l_old) with
    A / ``clip``, plus ``kl_behaviour`` times the mean squared difference of ``target`` to the behaviour weights'.
    ``weight`` selects h: "uniform" u, "t" t u, "t2" t^2 u, "ghuber" (t / p) ((u + 1e-10)^p - 1e-10^p) with p = 1/4;
    t = sigma / (alpha + sigma).
    """

    kl_reference: float = 1e-3
    kl_behaviour: float = 1.0
    target: Target = "velocity"
    weight: Literal["uniform", "t", "t2", "ghuber"] = "ghuber"
    clip: float = 5.0
    low: Limit = 1.0
    high: Limit = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(low=self.low, high=self.high, clip=self.clip)
        if not self.kl_behaviour >= 0:
            raise ValueError(f"kl_behaviour must not be negative, got {self.kl_behaviour}")

    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        gain = (advantage / self.clip).clamp(-1, 1)
        gap = self._likelihood(batch, batch.current) - self._likelihood(batch, batch.behaviour)
        ratio = gap.exp()
        old = batch.behaviour
        drift = per_row(matching_error(self.target, batch.current, old.x0, old.eps, batch.here) ** 2)
        loss = clip_loss(ratio, gain, self.low, self.high) + self.kl_behaviour * drift
        clip_mask = clip_stops(ratio.detach(), gain, self.low, self.high)
        return loss, {"log_ratio": gap.detach().abs(), "clip_fraction": clip_mask.float()}

    def _likelihood(self, batch: NoisedBatch, prediction: Prediction) -> Float[Tensor, " k"]:
        u = per_row(matching_error(self.target, prediction, batch.x0, batch.eps, batch.here) ** 2)
        t = batch.here.level.flatten()
        match self.weight:
            case "uniform":
                return -u
            case "t":
                return -t * u
            case "t2":
                return -(t**2) * u
            case "ghuber":
                return -4 * t * ((u + 1e-10) ** 0.25 - 1e-10**0.25)
