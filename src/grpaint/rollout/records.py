"""What a rollout leaves behind: its finished samples and the steps that can be trained."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Condition, Prompt, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.step import Gaussian, Sampler


class StepOutput(NamedTuple):
    """The distribution of the next latent, and the network's prediction from which it was computed."""

    gaussian: Gaussian
    prediction: Prediction

    def take(self, rows: Tensor) -> "StepOutput":
        """Select rows, also in the autograd graph."""
        gaussian, (x0, eps) = self
        with torch.enable_grad():  # a rollout that retains graphs prunes outside its gradient context
            return StepOutput(Gaussian(gaussian.mean[rows], gaussian.std), Prediction(x0[rows], eps[rows]))


@dataclass(frozen=True)
class Transition:
    """A trainable step: ``rows`` of the rollout went from ``x`` to ``x_next``, stored exactly as the model saw them.

    ``live`` is the output of ``act`` with its autograd graph, if the rollout retains graphs.
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
    live: StepOutput | None = None

    def take(self, index: Tensor, rows: Tensor) -> "Transition":
        """Select the actions ``index`` and give them new row numbers ``rows``."""
        tensors = {name: getattr(self, name)[index] for name in ("x", "x_next", "logp", "mean")}
        return dataclasses.replace(self, rows=rows, live=self.live and self.live.take(index), **tensors)


@dataclass(frozen=True)
class Rollout:
    """Finished samples; ``group`` is the number of the prompt that each row belongs to.

    These may be some rows of a whole that several processes or updates share. ``numbers`` are the rows' numbers among
    the ``count`` rows of the whole rollout, by which noise and times are keyed. ``total`` rows and ``actions`` trained
    actions belong to the same update, on all processes: means divide by these. By default the rows are the whole.

    ``previews`` holds the scores of previews by step, for the surviving rows; ``references`` marks rows that began at
    their prompt's reference image. ``weights`` are those that sampled. ``reach``: the ends of every step that the
    window may choose, in this iteration or another.
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
    weights: Weights = "current"
    numbers: Int[Tensor, " b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    count: int = -1
    total: int = -1
    actions: int = -1
    reach: tuple[tuple[Point, Point], ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.x0)
        if len(self.numbers) != rows:
            object.__setattr__(self, "numbers", torch.arange(rows))
        own = {"count": rows, "total": rows, "actions": sum(len(transition.rows) for transition in self.transitions)}
        for name, value in own.items():
            if getattr(self, name) < 0:
                object.__setattr__(self, name, value)

    def among(self, numbers: range, count: int) -> "Rollout":
        """Return the same samples as the rows ``numbers`` of an update on ``count`` rows that processes divide."""
        return dataclasses.replace(self, numbers=torch.tensor(numbers, dtype=torch.long), count=count, total=count)

    def rows(self, index: Int[Tensor, " k"]) -> "Rollout":
        """Select rows as an update of their own: positions become 0..k-1 in the order of ``index``, numbers stay."""
        positions = number_table(index, torch.arange(len(index)), len(self.group))
        transitions = renumber(self.transitions, positions)
        return dataclasses.replace(
            self,
            group=self.group[index],
            cond=self.cond.rows(index),
            transitions=transitions,
            numbers=self.numbers[index],
            total=len(index),
            actions=sum(len(transition.rows) for transition in transitions),
            x0=self.x0[index],
            previews={k: scores[index] for k, scores in self.previews.items()},
            references=self.references[index],
        )


def renumber(transitions: Sequence[Transition], new_numbers: Tensor) -> tuple[Transition, ...]:
    """Select the rows whose entry in ``new_numbers`` is not -1, and order them by it."""
    out = []
    for transition in transitions:
        rows = new_numbers[transition.rows]
        index = (rows >= 0).nonzero()[:, 0]
        index = index[rows[index].argsort()]
        if torch.equal(index, torch.arange(len(rows))):  # all rows in order: nothing to copy
            out.append(dataclasses.replace(transition, rows=rows))
        elif len(index):
            out.append(transition.take(index, rows[index]))
    return tuple(out)


def number_table(old: Tensor, new: Tensor, total: int) -> Tensor:
    """Return a table ``[total]`` from old row numbers to new ones, -1 for rows that were dropped."""
    table = torch.full((total,), -1)
    table[old] = new
    return table
