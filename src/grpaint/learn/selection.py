"""Advantages that leave out part of each scored group; rows with advantage 0 cost no model call."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.learn.advantage import Advantage, PerReward, compute_advantage
from grpaint.learn.table import RewardTable
from grpaint.rollout.prune import optimal_variance
from grpaint.rollout.rollout import Rollout


def _groups(rollout: Rollout) -> list[Tensor]:
    """Return the row numbers of each group."""
    return [(rollout.group == number).nonzero()[:, 0] for number in rollout.group.unique().tolist()]


def _select(advantage: Tensor, rows: Tensor) -> Tensor:
    """Set ``advantage`` to 0 outside ``rows`` and rescale it, so that a mean over all rows is a mean over these."""
    out = torch.zeros_like(advantage)
    out[rows] = advantage[rows] * (len(advantage) / len(rows))
    return out


def _check(keep: int, of: Advantage) -> None:
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}")
    if getattr(of, "needs_previews", False):
        raise ValueError(
            "of: images are selected by one number per image, and step-aware advantages have one per step; use one or "
            "the other"
        )


@dataclass(frozen=True)
class OptimalVariance:
    """Static Optimal Variance Filtering (Pro-GRPO, arXiv 2512.15347).

    Selects the ``keep`` members of each finished group whose final rewards vary the most; the statistics of the
    advantage ``of`` are over these members only.
    """

    keep: int = 12
    of: Advantage = field(default_factory=PerReward)

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.keep, self.of)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        total = table.total()
        rows = torch.cat([rows[optimal_variance(total[rows], min(self.keep, len(rows)))] for rows in _groups(rollout)])
        selected = compute_advantage(self.of, table.rows(rows), rollout.rows(rows))
        advantage = selected.new_zeros(len(total), *selected.shape[1:]).index_copy(0, rows, selected)
        return _select(advantage, rows)


@dataclass(frozen=True)
class BestWorst:
    """The ``keep`` / 2 best and worst of each group, by advantage in the whole group (DanceGRPO's best-of-n)."""

    keep: int = 8
    of: Advantage = field(default_factory=PerReward)

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.keep, self.of)
        if self.keep % 2:
            raise ValueError(f"keep must be even, got {self.keep}")

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        advantage = self.of(table, rollout)
        ranked = [rows[advantage[rows].argsort(stable=True)] for rows in _groups(rollout)]
        half = self.keep // 2
        selection = [rows if len(rows) <= self.keep else torch.cat([rows[:half], rows[-half:]]) for rows in ranked]
        return _select(advantage, torch.cat(selection))
