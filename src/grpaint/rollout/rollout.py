"""Rolling out groups of samples, and the one way to take a step."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Condition, Policy, Prompt, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.step import Gaussian, Sampler, step
from grpaint.rollout.plan import Course, Leg, Plan
from grpaint.rollout.solver import multistep

__all__ = ["Plan", "Rollout", "Score", "Transition", "act", "roll"]

Acted = tuple[Gaussian, Prediction]
Score = Callable[[Tensor, Sequence[Prompt], Tensor], Tensor]  # of images, for prompts; True where one has a reference


@dataclass(frozen=True)
class Transition:
    """One trainable action: ``rows`` of the rollout went from ``x`` to ``x_next``, stored as the model saw them.

    ``live`` is what ``act`` gave, its graph kept, where the rollout retains it.
    """

    step: int
    rows: Int[Tensor, " k"]
    here: Point
    there: Point
    x: Float[Tensor, "k *latent"]
    x_next: Float[Tensor, "k *latent"]
    logp: Float[Tensor, " k"]
    mean: Float[Tensor, "k *latent"]
    std: float
    live: Acted | None = None

    def take(self, index: Tensor, rows: Tensor) -> "Transition":
        """The actions ``index``, now belonging to ``rows``."""
        parts = {name: getattr(self, name)[index] for name in ("x", "x_next", "logp", "mean")}
        return dataclasses.replace(self, rows=rows, live=self.live and _pick(self.live, index), **parts)


@dataclass(frozen=True)
class Rollout:
    """Finished samples, flat, with the number of the prompt that each belongs to.

    ``previews`` holds the scores that a funnel saw, by step, for the rows that survived; ``references`` marks rows that
    began at their prompt's reference image.
    """

    prompts: Sequence[Prompt]
    group: Int[Tensor, " b"]
    cond: Condition
    sampler: Sampler
    transitions: tuple[Transition, ...]
    x0: Float[Tensor, "b *latent"]
    previews: dict[int, Float[Tensor, " b"]]
    references: Bool[Tensor, " b"]
    iteration: int
    seed: int

    def rows(self, index: Int[Tensor, " k"]) -> "Rollout":
        """The rollout of some rows, renumbered 0..k-1 in the order of ``index``."""
        place = _places(index, torch.arange(len(index)), len(self.group))
        return dataclasses.replace(
            self,
            group=self.group[index],
            cond=self.cond.rows(index),
            transitions=_renumber(self.transitions, place),
            x0=self.x0[index],
            previews={k: scores[index] for k, scores in self.previews.items()},
            references=self.references[index],
        )


def _renumber(transitions: Sequence[Transition], place: Tensor) -> tuple[Transition, ...]:
    """Transitions of the rows whose ``place`` is not -1, ordered by it."""
    out = []
    for transition in transitions:
        rows = place[transition.rows]
        kept = (rows >= 0).nonzero()[:, 0]
        kept = kept[rows[kept].argsort()]
        if torch.equal(kept, torch.arange(len(rows))):  # all of them, in order: nothing to copy
            out.append(dataclasses.replace(transition, rows=rows))
        elif len(kept):
            out.append(transition.take(kept, rows[kept]))
    return tuple(out)


def act(
    policy: Policy,
    sampler: Sampler,
    x: Float[Tensor, "k *latent"],
    here: Point,
    there: Point,
    cond: Condition,
    weights: Weights = "current",
) -> Acted:
    """Take one step, in fp32. Rollout and replay both call this, so that the ratio before an update is exactly 1."""
    prediction = policy.predict(x.float(), here, cond, weights)
    prediction = Prediction(prediction.x0.float(), prediction.eps.float())
    return step(sampler, prediction, here, there), prediction


@dataclass(frozen=True)
class _Walk:
    """Rows on their way: where they are, the step at which each enters, whose prompt each is of, and its number."""

    x: Tensor
    entry: Tensor
    references: Tensor
    owner: Tensor
    number: Tensor

    def take(self, index: Tensor) -> "_Walk":
        return _Walk(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def fork(self, samples: Tensor, group: Tensor) -> "_Walk":
        """From one row a prompt, in ascending order, to one a sample."""
        rows = torch.searchsorted(self.owner, group)
        return dataclasses.replace(self.take(rows), owner=group, number=samples)


class Roller:
    """The state of one rollout, and what is done to it at a step; :meth:`enter` begins it anew with other prompts."""

    def __init__(
        self, policy: Policy, prompts: Sequence[Prompt], group_size: int, plan: Plan, key: tuple[int, int]
    ) -> None:
        self.policy, self.prompts, self.plan, self.key = policy, prompts, plan, key
        seed, iteration = key
        self.course: Course = plan.course(policy.path, iteration, seed)
        self.group = torch.arange(len(prompts)).repeat_interleave(group_size)
        owner = torch.arange(len(prompts)) if plan.start.shared else self.group
        self.cond = policy.encode(prompts)
        begin = plan.start.begin(policy, prompts, owner, policy.path.grid(plan.steps), key)
        self.begun = _Walk(*begin, owner, torch.arange(len(owner)))
        self.enter(torch.arange(len(prompts)))

    def enter(self, numbers: Tensor) -> None:
        """Begin with these prompts' rows; they keep the numbers, and so the noise, that they have among all."""
        self.walk = self.begun.take(torch.isin(self.begun.owner, numbers).nonzero()[:, 0])
        self.samples = torch.isin(self.group, numbers).nonzero()[:, 0]
        self.transitions: list[Transition] = []
        self.previews: dict[int, Tensor] = {}
        self.before: tuple[Tensor, Point] | None = None  # what a solver looks back on

    def fork(self, step: int) -> None:
        """Where groups first differ, one row a prompt becomes one a sample."""
        if self.plan.start.shared and step == self.course.fork:
            self.walk = self.walk.fork(self.samples, self.group[self.samples])

    def take(self, leg: Leg, score: Score | None, *, retain: bool) -> None:
        """One step of every row that is under way."""
        going = (self.walk.entry <= leg.step).nonzero()[:, 0]
        if not len(going):
            return
        x, rows = _some(self.walk.x, going), self.cond.rows(self.walk.owner[going])
        base = leg.step >= round(self.plan.base_after * len(self.course.legs), 9)
        weights = "reference" if base else self.plan.weights
        with torch.set_grad_enabled(retain and leg.trained):
            acted = act(self.policy, leg.sampler, x, leg.here, leg.there, rows, weights)
        scores = self._preview(leg.step, acted[1].x0.detach(), score)
        if leg.step in self.course.prune:
            alive = self._prune(leg.step, scores)
            acted, x, going = _pick(acted, alive), x[alive], torch.arange(len(alive))
        x_next = self._next(leg, going, acted)
        if leg.trained:
            mean, std = acted[0].mean.detach(), acted[0].std
            logp = Gaussian(mean, std).log_prob(x_next)
            numbers = self.walk.number[going]
            action = (leg.step, numbers, leg.here, leg.there, x, x_next, logp, mean, std, acted if retain else None)
            self.transitions.append(Transition(*action))
        if len(going) < len(self.walk.x):
            x_next = self.walk.x.index_copy(0, going.to(self.walk.x.device), x_next)
        self.walk = dataclasses.replace(self.walk, x=x_next)

    def _next(self, leg: Leg, going: Tensor, acted: Acted) -> Tensor:
        """Where the rows go: solved, sampled, or the mean."""
        gaussian, prediction = acted
        if leg.solved and self.plan.tail:
            x_next = multistep(prediction, self.before, leg.here, leg.there, self.plan.tail.order)
            self.before = prediction.x0, leg.here
            return x_next
        if not gaussian.std:
            return gaussian.mean
        noise = self.policy.noise((*self.key, leg.step), self.walk.number[going])
        return Gaussian(gaussian.mean.detach(), gaussian.std).sample(noise)

    def _preview(self, step: int, x0: Tensor, score: Score | None) -> Tensor:
        """Scores of the clean predictions at a checkpoint, or where step-aware advantages want them; else nothing."""
        if not (step in self.course.prune or (self.plan.previews and self.course.previewed(step))):
            return torch.zeros(0)
        if score is None:
            raise ValueError("plan.prune: a funnel needs something to score its previews with")
        prompts = [self.prompts[i] for i in self.walk.owner.tolist()]
        self.previews[step] = score(self.policy.decode(x0), prompts, self.walk.references)
        return self.previews[step]

    def _prune(self, step: int, scores: Tensor) -> Tensor:
        """Drop rows, and free all that was kept of them."""
        funnel = self.plan.prune
        if funnel is None:
            raise ValueError("no funnel to prune with")
        alive = funnel.survivors(self.course.prune[step], self.walk.owner, scores, self.key[1])
        self.walk = self.walk.take(alive)
        places = _places(self.walk.number, self.walk.number, len(self.group))
        self.transitions = list(_renumber(self.transitions, places))
        self.previews = {at: old[alive] for at, old in self.previews.items()}
        return alive

    def go(self, score: Score | None, *, retain: bool = False) -> Rollout:
        """All steps."""
        for leg in self.course.legs:
            self.fork(leg.step)
            self.take(leg, score, retain=retain)
        self.fork(len(self.course.legs))
        return self.end()

    def end(self) -> Rollout:
        """The finished rows, renumbered 0 .. b - 1."""
        places = _places(self.walk.number, torch.arange(len(self.walk.number)), len(self.group))
        walk, (seed, iteration) = self.walk, self.key
        return Rollout(
            self.prompts,
            walk.owner,
            self.cond.rows(walk.owner),
            self.plan.sampler,
            _renumber(self.transitions, places),
            walk.x,
            self.previews,
            walk.references,
            iteration,
            seed,
        )


def roll(  # noqa: PLR0913 - reason: the keyword-only ones are the house's public signature
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

    With shared start noise a prompt is one row until the first step that adds noise, where it forks into its group. A
    funnel asks ``score`` about the clean images predicted at its checkpoints, from the prediction that the survivors'
    next step uses anyway. ``retain`` keeps the graphs of the window's steps for an objective that is asked once.
    """
    with torch.no_grad():
        return Roller(policy, prompts, group_size, plan, (seed, iteration)).go(score, retain=retain)


def _pick(acted: Acted, rows: Tensor) -> Acted:
    gaussian, (x0, eps) = acted
    with torch.enable_grad():  # a graph that is kept stays one
        return Gaussian(gaussian.mean[rows], gaussian.std), Prediction(x0[rows], eps[rows])


def _some(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` in ascending order, without a copy where they are all of them."""
    return x if len(rows) == len(x) else x[rows]


def _places(numbers: Tensor, become: Tensor, total: int) -> Tensor:
    """A table from old row numbers to new ones, -1 for rows that are gone."""
    place = torch.full((total,), -1)
    place[numbers] = become
    return place
