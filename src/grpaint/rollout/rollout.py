"""Rollouts: sampling groups of images, and ``act``, the step that rollout and replay share."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Condition, Policy, Prompt, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.step import Gaussian, Sampler, step
from grpaint.rollout.plan import Course, Leg, Plan
from grpaint.rollout.records import Rollout, StepOutput, Transition, number_table, renumber
from grpaint.rollout.solver import multistep
from grpaint.rollout.start import StartRows

__all__ = ["Plan", "Rollout", "Score", "Transition", "act", "roll"]

# (images [b, 3, h, w], prompts, whether each row began at a reference image [b]) -> scores [b]
Score = Callable[[Tensor, Sequence[Prompt], Tensor], Tensor]


def act(
    policy: Policy,
    sampler: Sampler,
    x: Float[Tensor, "k *latent"],
    here: Point,
    there: Point,
    cond: Condition,
    weights: Weights = "current",
) -> StepOutput:
    """Take one step, in fp32. Rollout and replay both call this, so that the ratio before an update is exactly 1."""
    prediction = policy.predict(x.float(), here, cond, weights)
    prediction = Prediction(prediction.x0.float(), prediction.eps.float())
    return StepOutput(step(sampler, prediction, here, there), prediction)


@dataclass(frozen=True)
class _ActiveRows:
    """Rows not yet pruned: latents, each one's first step, reference mark, prompt number and sample number."""

    x: Tensor
    entry: Tensor
    references: Tensor
    owner: Tensor
    number: Tensor

    def take(self, index: Tensor) -> "_ActiveRows":
        return _ActiveRows(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def fork(self, samples: Tensor, group: Tensor) -> "_ActiveRows":
        """Repeat one row per prompt, in ascending order, as one row per sample."""
        rows = torch.searchsorted(self.owner, group)
        return dataclasses.replace(self.take(rows), owner=group, number=samples)


class Roller:
    """The state of a rollout, advanced step by step; :meth:`start` begins again with some of the prompts.

    ``samples``: the ascending numbers of the samples that are drawn, among all prompts' groups; by default all.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        group_size: int,
        plan: Plan,
        key: tuple[int, int],
        *,
        samples: Tensor | None = None,
    ) -> None:
        self.policy, self.prompts, self.plan, self.key = policy, prompts, plan, key
        seed, iteration = key
        self.course: Course = plan.course(policy.path, iteration, seed)
        self.group = torch.arange(len(prompts)).repeat_interleave(group_size)
        self.all_samples = torch.arange(len(self.group)) if samples is None else samples
        self.prompt_numbers = self.group[self.all_samples].unique()
        owner = self.prompt_numbers if plan.start.shared else self.group[self.all_samples]
        numbers = owner if plan.start.shared else self.all_samples
        self.encoded = policy.encode([prompts[number] for number in self.prompt_numbers.tolist()])
        grid = policy.path.grid(plan.steps_at(iteration))
        start = plan.start.begin(policy, prompts, StartRows(owner, numbers), grid, key)
        self.start_rows = _ActiveRows(*start, owner, numbers)
        self.start(self.prompt_numbers)

    def cond(self, prompt_numbers: Tensor) -> Condition:
        """Return the encoded prompts of these numbers."""
        return self.encoded.rows(torch.searchsorted(self.prompt_numbers, prompt_numbers))

    def start(self, prompt_numbers: Tensor) -> None:
        """Restart with the rows of these prompts alone; a row keeps its number in the rollout, and so its noise."""
        self.active = self.start_rows.take(torch.isin(self.start_rows.owner, prompt_numbers).nonzero()[:, 0])
        self.samples = self.all_samples[torch.isin(self.group[self.all_samples], prompt_numbers)]
        self.transitions: list[Transition] = []
        self.previews: dict[int, Tensor] = {}
        self.previous: tuple[Tensor, Point] | None = None  # the tail's last predicted clean sample and its point

    def fork(self, step: int) -> None:
        """Turn one row per prompt into one per sample, if groups begin to differ at ``step``."""
        if self.plan.start.shared and step == self.course.fork:
            self.active = self.active.fork(self.samples, self.group[self.samples])

    def advance(self, leg: Leg, score: Score | None, *, retain: bool) -> None:
        """Take one step of every row that has begun."""
        rows = (self.active.entry <= leg.step).nonzero()[:, 0]
        if not len(rows):
            return
        x, cond = _select(self.active.x, rows), self.cond(self.active.owner[rows])
        base = leg.step >= round(self.plan.base_after * len(self.course.legs), 9)
        weights = "reference" if base else self.plan.weights
        with torch.set_grad_enabled(retain and leg.trained):
            output = act(self.policy, leg.sampler, x, leg.here, leg.there, cond, weights)
        scores = self._preview(leg.step, output.prediction.x0.detach(), score)
        if leg.step in self.course.prune:
            survivors = self._prune(leg.step, scores)
            output, x, rows = output.take(survivors), x[survivors], torch.arange(len(survivors))
        x_next = self._next_latents(leg, rows, output)
        if leg.trained:
            mean, std = output.gaussian.mean.detach(), output.gaussian.std
            logp = Gaussian(mean, std).log_prob(x_next)
            numbers, live = self.active.number[rows], output if retain else None
            self.transitions.append(
                Transition(leg.step, numbers, leg.here, leg.there, x, x_next, logp, mean, std, live)
            )
        if len(rows) < len(self.active.x):
            x_next = self.active.x.index_copy(0, rows.to(self.active.x.device), x_next)
        self.active = dataclasses.replace(self.active, x=x_next)

    def _next_latents(self, leg: Leg, rows: Tensor, output: StepOutput) -> Tensor:
        """Compute the next latents: by the multistep solver in a tail, else sampled, or the mean without noise."""
        gaussian, prediction = output
        if leg.in_tail and self.plan.tail:
            x_next = multistep(prediction, self.previous, leg.here, leg.there, self.plan.tail.order)
            self.previous = prediction.x0, leg.here
            return x_next
        if not gaussian.std:
            return gaussian.mean
        noise = self.policy.noise((*self.key, leg.step), self.active.number[rows])
        return Gaussian(gaussian.mean.detach(), gaussian.std).sample(noise)

    def _preview(self, step: int, x0: Tensor, score: Score | None) -> Tensor:
        """Score the predicted clean samples at a pruning checkpoint or for step-aware advantages; else empty."""
        if not (step in self.course.prune or (self.plan.previews and self.course.has_preview(step))):
            return torch.zeros(0)
        if score is None:
            raise ValueError("plan.prune: a funnel needs rewards to score its previews")
        prompts = [self.prompts[i] for i in self.active.owner.tolist()]
        self.previews[step] = score(self.policy.decode(x0), prompts, self.active.references)
        return self.previews[step]

    def _prune(self, step: int, scores: Tensor) -> Tensor:
        """Drop the rows that do not survive, with their transitions and previews; returns the surviving rows."""
        funnel = self.plan.prune
        if funnel is None:
            raise ValueError("no funnel to prune with")
        survivors = funnel.survivors(self.course.prune[step], self.active.owner, scores, self.key[1])
        self.active = self.active.take(survivors)
        numbers = number_table(self.active.number, self.active.number, len(self.group))
        self.transitions = list(renumber(self.transitions, numbers))
        self.previews = {at: preview[survivors] for at, preview in self.previews.items()}
        return survivors

    def run(self, score: Score | None, *, retain: bool = False) -> Rollout:
        """Take all steps and return the rollout."""
        for leg in self.course.legs:
            self.fork(leg.step)
            self.advance(leg, score, retain=retain)
        self.fork(len(self.course.legs))
        return self.finish()

    def finish(self) -> Rollout:
        """Return the finished rows, renumbered 0 .. b - 1."""
        active, (seed, iteration) = self.active, self.key
        numbers = number_table(active.number, torch.arange(len(active.number)), len(self.group))
        return Rollout(
            self.prompts,
            active.owner,
            self.cond(active.owner),
            self.plan.sampler,
            renumber(self.transitions, numbers),
            active.x,
            self.previews,
            active.references,
            iteration,
            seed,
            self.plan.weights,
            reach=self.plan.reach(self.policy.path, iteration),
        )


def roll(  # noqa: PLR0913 - reason: public signature, keyword-only options
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    plan: Plan,
    *,
    iteration: int,
    seed: int,
    score: Score | None = None,
    retain: bool = False,
) -> Rollout:
    """Sample ``group_size`` images of every prompt, recording the steps of the window.

    With shared start noise a prompt is one row until the first step that adds noise, where it forks into its group.
    ``score`` scores previews, the clean images predicted at a funnel's checkpoints; they cost no extra model call, as
    the survivors' next step uses the same prediction. ``retain`` keeps the autograd graphs of the window's steps, for
    an objective that is evaluated once per rollout.

    Raises:
        ValueError: if the plan needs previews and ``score`` is None.
    """
    with torch.no_grad():
        return Roller(policy, prompts, group_size, plan, (seed, iteration)).run(score, retain=retain)


def _select(x: Tensor, rows: Tensor) -> Tensor:
    """Select ascending rows of ``x``, without a copy if they are all rows."""
    return x if len(rows) == len(x) else x[rows]
