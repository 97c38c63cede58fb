"""Advantages that leave out part of a group after it has been scored. Rows with advantage 0 cost no model call."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.learn.advantage import Advantage, PerReward, credit
from grpaint.learn.table import RewardTable
from grpaint.rollout.prune import optimal_variance
from grpaint.rollout.rollout import Rollout


def _members(rollout: Rollout) -> list[Tensor]:
    return [(rollout.group == number).nonzero()[:, 0] for number in rollout.group.unique().tolist()]


def _keep(advantage: Tensor, rows: Tensor) -> Tensor:
    """``advantage`` at ``rows``, 0 elsewhere, scaled so that the mean over all rows is the mean over those."""
    out = torch.zeros_like(advantage)
    out[rows] = advantage[rows] * (len(advantage) / len(rows))
    return out


def _check(keep: int, of: Advantage) -> None:
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}")
    if getattr(of, "needs_previews", False):
        raise ValueError(
            "of: which images to keep is chosen by one number an image, and step-aware advantages have one a step; "
            "choose one of the two"
        )


@dataclass(frozen=True)
class OptimalVariance:
    """Static Optimal Variance Filtering (Pro-GRPO, arXiv 2512.15347).

    Of each finished group the ``keep`` members whose final rewards vary the most; statistics are theirs alone.
    """

    keep: int = 12
    of: Advantage = field(default_factory=PerReward)

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.keep, self.of)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        total = table.total()
        rows = torch.cat([rows[optimal_variance(total[rows], min(self.keep, len(rows)))] for rows in _members(rollout)])
        inner = credit(self.of, table.rows(rows), rollout.rows(rows))
        spread = inner.new_zeros(len(total), *inner.shape[1:]).index_copy(0, rows, inner)
        return _keep(spread, rows)


@dataclass(frozen=True)
class BestWorst:
    """The ``keep`` / 2 best and worst of each group by their advantage in the whole group (DanceGRPO's best of n)."""

    keep: int = 8
    of: Advantage = field(default_factory=PerReward)

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.keep, self.of)
        if self.keep % 2:
            raise ValueError(f"keep must be even, got {self.keep}")

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        advantage = self.of(table, rollout)
        ranked = [rows[advantage[rows].argsort(stable=True)] for rows in _members(rollout)]
        half = self.keep // 2
        chosen = [rows if len(rows) <= self.keep else torch.cat([rows[:half], rows[-half:]]) for rows in ranked]
        return _keep(advantage, torch.cat(chosen))
