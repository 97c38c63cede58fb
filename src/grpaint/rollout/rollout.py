"""Rolling out groups of samples, and the one way to take a step."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.path import Path, Point
from grpaint.core.policy import Condition, Policy, Prompt, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.step import Gaussian, Ode, Sampler, step
from grpaint.rollout.prune import Funnel
from grpaint.rollout.start import Independent, Reference, Start
from grpaint.rollout.window import Whole, Window

Score = Callable[[Tensor, Sequence[Prompt]], Tensor]


@dataclass(frozen=True)
class Plan:
    """How a rollout samples: ``sampler`` in the window, ``outside`` (noise-free) elsewhere; and whose ``weights``."""

    steps: int = 10
    sampler: Sampler = field(default_factory=Ode)
    window: Window = field(default_factory=Whole)
    prune: Funnel | None = None
    start: Start = field(default_factory=Independent)
    outside: Sampler = field(default_factory=Ode)
    weights: Weights = "current"

    def check(self, path: Path, group_size: int) -> None:
        """Refuse what cannot run, before any weight is opened.

        Raises:
            ValueError: with the reason; the configuration puts the key before it.
        """
        self.window.check(self.steps)
        if self.prune:
            self.prune.check(self.steps, group_size)
        grid = path.grid(self.steps)
        for k in self.window.reach(self.steps):
            if not self.sampler(grid[k], grid[k + 1])[1] > 0:
                raise ValueError(
                    f"sampler adds no noise at step {k}, which the window may train: it has no likelihood there. Use a "
                    "noisy sampler (an eta above 0), and keep the window off a last step that ends clean"
                )
        if isinstance(self.start, Reference):
            enter = self.start.enter(grid)
            if self.prune and self.prune.at[0] < enter:
                raise ValueError(f"prune.at must not come before step {enter}, where rows with a reference begin")


@dataclass(frozen=True)
class Transition:
    """One trainable action: ``rows`` of the rollout went from ``x`` to ``x_next``, stored as the model saw them."""

    step: int
    rows: Int[Tensor, " k"]
    here: Point
    there: Point
    x: Float[Tensor, "k *latent"]
    x_next: Float[Tensor, "k *latent"]
    logp: Float[Tensor, " k"]
    mean: Float[Tensor, "k *latent"]
    std: float

    def take(self, index: Tensor, rows: Tensor) -> "Transition":
        """The actions ``index``, now belonging to ``rows``."""
        parts = {name: getattr(self, name)[index] for name in ("x", "x_next", "logp", "mean")}
        return dataclasses.replace(self, rows=rows, **parts)


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
) -> tuple[Gaussian, Prediction]:
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

    def fork(self, group: Tensor) -> "_Walk":
        """From one row a prompt to one a sample."""
        return dataclasses.replace(self.take(group), owner=group, number=torch.arange(len(group)))


def roll(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    plan: Plan,
    *,
    iteration: int,
    seed: int,
    score: Score | None = None,
) -> Rollout:
    """Sample ``group_size`` images of every prompt, recording the noisy steps.

    With shared start noise a prompt is one row until the first noisy step, where it forks into its group. A funnel asks
    ``score`` about the clean images predicted at its checkpoints, from the prediction that the survivors' next step
    uses anyway.
    """
    grid = policy.path.grid(plan.steps)
    noisy = plan.window.steps(plan.steps, iteration, seed)
    fork = min(noisy.start if len(noisy) else plan.steps, *(plan.prune.at if plan.prune else ()), plan.steps)
    group = torch.arange(len(prompts)).repeat_interleave(group_size)
    owner = torch.arange(len(prompts)) if plan.start.shared else group
    transitions: list[Transition] = []
    previews: dict[int, Tensor] = {}
    with torch.no_grad():
        cond = policy.encode(prompts)
        begin = plan.start.begin(policy, prompts, owner, grid, (seed, iteration))
        walk = _Walk(*begin, owner, torch.arange(len(owner)))
        for k, (here, there) in enumerate(pairwise(grid)):
            if plan.start.shared and k == fork:
                walk = walk.fork(group)
            going = (walk.entry <= k).nonzero()[:, 0]
            if not len(going):
                continue
            sampler = plan.sampler if k in noisy else plan.outside
            rows = cond.rows(walk.owner[going])
            gaussian, prediction = act(policy, sampler, _some(walk.x, going), here, there, rows, plan.weights)
            if plan.prune and k in plan.prune.at:
                scores = _previews(policy, prediction.x0, walk.owner, prompts, score)
                alive = plan.prune.survivors(k, walk.owner, scores)
                walk, gaussian = walk.take(alive), Gaussian(gaussian.mean[alive], gaussian.std)
                going = torch.arange(len(alive))
                transitions = list(_renumber(transitions, _places(walk.number, walk.number, len(group))))
                previews = {at: old[alive] for at, old in previews.items()} | {k: scores[alive]}
            numbers = walk.number[going]
            x_next = gaussian.sample(policy.noise((seed, iteration, k), numbers)) if k in noisy else gaussian.mean
            if k in noisy:
                logp = gaussian.log_prob(x_next)
                action = (_some(walk.x, going), x_next, logp, gaussian.mean, gaussian.std)
                transitions.append(Transition(k, numbers, here, there, *action))
            if len(going) < len(walk.x):
                x_next = walk.x.index_copy(0, going.to(walk.x.device), x_next)
            walk = dataclasses.replace(walk, x=x_next)
        if plan.start.shared and fork == plan.steps:
            walk = walk.fork(group)
        done = _renumber(transitions, _places(walk.number, torch.arange(len(walk.number)), len(group)))
        ends = cond.rows(walk.owner)
    return Rollout(prompts, walk.owner, ends, plan.sampler, done, walk.x, previews, walk.references, iteration, seed)


def _some(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` in ascending order, without a copy where they are all of them."""
    return x if len(rows) == len(x) else x[rows]


def _places(numbers: Tensor, become: Tensor, total: int) -> Tensor:
    """A table from old row numbers to new ones, -1 for rows that are gone."""
    place = torch.full((total,), -1)
    place[numbers] = become
    return place


def _previews(policy: Policy, x0: Tensor, owner: Tensor, prompts: Sequence[Prompt], score: Score | None) -> Tensor:
    if score is None:
        raise ValueError("plan.prune: a funnel needs something to score its previews with")
    return score(policy.decode(x0), [prompts[i] for i in owner.tolist()])
