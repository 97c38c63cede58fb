"""Objectives that compare the images of a group with each other: preferences in place of likelihoods.

Like those of :mod:`grpaint.learn.forward` they noise finished samples again. All members of a group have the same noise
and the same times, so that what they have in common cancels, and a reference tells how far each has been improved.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.bounds import Limit, check_positive
from grpaint.core.prediction import Prediction
from grpaint.core.step import per_row
from grpaint.learn.forward import ForwardObjective, Measures, NoisedBatch
from grpaint.learn.objective import Target, matching_error
from grpaint.learn.surrogate import clip_stops
from grpaint.rollout.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GroupObjective(ForwardObjective):
    """Base class: l is the mean squared error of ``target``, and l_ref the reference weights'.

    ``minibatch`` is rounded up to whole groups. The mean is over all rows of the update, as everywhere.
    """

    needs_reference: ClassVar[bool] = True
    needs_group: ClassVar[bool] = True

    kl_reference: float = 0.0
    draws: int = 1
    noise: Literal["own", "group"] = "group"
    target: Target = "velocity"
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(beta=self.beta)

    def _minibatches(self, rollout: Rollout, rows: Tensor) -> Iterator[Tensor]:
        members: list[Tensor] = []
        for group_rows in _members(rollout.group, rows):
            members.append(group_rows)
            if self.minibatch and sum(map(len, members)) >= self.minibatch:
                yield torch.cat(members)
                members = []
        if members:
            yield torch.cat(members)

    def _time_numbers(self, rollout: Rollout) -> Tensor:
        """Return the number of the first member of each row's group."""
        _, place = rollout.group.unique(return_inverse=True)
        first = torch.full((len(rollout.group),), torch.iinfo(torch.long).max)
        return first.scatter_reduce(0, place, rollout.numbers, "amin")[place]

    def _errors(self, batch: NoisedBatch) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """Return l and l_ref."""
        assert batch.reference
        return self._error(batch, batch.current), self._error(batch, batch.reference)

    def _error(self, batch: NoisedBatch, prediction: Prediction) -> Float[Tensor, " k"]:
        return per_row(matching_error(self.target, prediction, batch.x0, batch.eps, batch.here) ** 2)


@dataclass(frozen=True, kw_only=True)
class Dpo(GroupObjective):
    """Diffusion-DPO (arXiv 2311.12908, eq. 14) on the best and the worst image of each group, by advantage.

    The loss of a group is -log sigmoid(-beta ((l_best - l_ref_best) - (l_worst - l_ref_worst))), or 0 if its advantages
    are all equal; the mean is over all groups. Images between best and worst cost no model call. Public codes write
    beta / 2 in the place of beta, with 2000 to 5000.
    """

    beta: float = 1000.0

    def _rows(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        pairs = []
        for rows in _members(rollout.group, torch.arange(len(rollout.group))):
            best, worst = rows[advantage[rows].argmax()], rows[advantage[rows].argmin()]
            if advantage[best] > advantage[worst]:
                pairs += [best, worst]
        return torch.stack(pairs) if pairs else torch.zeros(0, dtype=torch.long)

    def _count(self, rollout: Rollout) -> float:
        """Return the number of groups of the update, of which this process has whole ones."""
        return rollout.total * len(rollout.group.unique()) / len(rollout.group)

    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        error, reference_error = self._errors(batch)
        best, worst = (error - reference_error).view(-1, 2).T
        margin = (-self.beta * (best - worst)).repeat_interleave(2)
        return -F.logsigmoid(margin) / 2, {"margin": margin.detach()}


@dataclass(frozen=True, kw_only=True)
class Dgpo(GroupObjective):
    """Direct group preference optimisation (DGPO, arXiv 2510.08425).

    With s = (beta / G) sum_i A_i (l_i - l_ref_i) over the G members of a group that have an advantage, the loss is the
    mean of sigmoid(s) A_i l_i, where sigmoid(s) has no gradient. A row has none either if A_i > 0 and
    exp(l_old - l) > 1 + ``clip``, or A_i < 0 and exp(l_old - l) < 1 - ``clip``; l_old is the error of the weights that
    sampled.
    """

    kl_reference: float = 0.02
    beta: float = 100.0
    clip: Limit = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(clip=self.clip)

    def contrast(self, batch: NoisedBatch, advantage: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Measures]:
        error, reference_error = self._errors(batch)
        gain = advantage * (error - reference_error).detach()
        _, place, count = batch.group.to(error.device).unique(return_inverse=True, return_counts=True)
        sums = gain.new_zeros(len(count)).index_add(0, place, gain)
        weight = (self.beta * sums / count)[place].sigmoid()
        with torch.no_grad():
            ratio = (self._error(batch, batch.behaviour) - error).exp()
            stopped = clip_stops(ratio, advantage, self.clip, self.clip)
        loss = weight * advantage * torch.where(stopped, error.detach(), error)
        return loss, {"group_weight": weight.detach(), "clip_fraction": stopped.float()}


def _members(group: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """Yield those of ``rows`` that belong to each group, in their order."""
    numbers = group[rows]
    for number in numbers.unique().tolist():
        yield rows[numbers == number]
