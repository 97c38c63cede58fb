"""Expand and prune (Pro-GRPO, arXiv 2512.15347): keep the members of a group whose scores vary the most."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def optimal_variance(scores: Float[Tensor, " g"], keep: int) -> Int[Tensor, " keep"]:
    """Return ascending indices of the ``keep`` scores with the largest population variance; exact in O(g log g).

    Variance is convex in each score, so the best subset is a head and a tail of the sorted list; all splits are tried.

    Raises:
        ValueError: unless 2 <= keep <= g.
    """
    if not 2 <= keep <= len(scores):
        raise ValueError(f"keep must lie in 2..{len(scores)}, got {keep}")
    values, order = scores.double().sort(stable=True)
    values = values - values.mean()
    head = torch.arange(keep + 1)

    def subset_sums(terms: Tensor) -> Tensor:
        cumulative = torch.cat([terms.new_zeros(1), terms.cumsum(0)])
        return cumulative[head] + cumulative[-1] - cumulative[len(scores) - keep + head]

    variance = subset_sums(values**2) / keep - (subset_sums(values) / keep) ** 2
    split = int(variance.argmax())
    return torch.cat([order[:split], order[len(scores) - keep + split :]]).sort().values


def ranks(scores: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
    """Rank scores from 1, with equal scores sharing their mean rank, as for Spearman's correlation."""
    _, inverse, count = scores.double().unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[inverse]


@dataclass(frozen=True)
class Funnel:
    """Prune each group to ``keep[i]`` members after ``at[i]`` completed steps, by the scores of its previews.

    With ``close`` the last ``keep`` applies where the iteration's window closes: later steps are deterministic, so a
    preview there is nearly exact. In every ``audit``-th iteration (0: never) the first group is not pruned and is
    trained on whole, so that the rank correlation of previews with final rewards can be measured without selection.
    """

    at: tuple[int, ...] = (5, 7)
    keep: tuple[int, ...] = (24, 12)
    close: bool = False
    audit: int = 50

    def __post_init__(self) -> None:
        if len(self.at) + self.close != len(self.keep) or list(self.at) != sorted(set(self.at)):
            length = "one shorter than" if self.close else "as long as"
            raise ValueError(f"at must ascend and be {length} keep, got at {self.at}, keep {self.keep}")
        if list(self.keep) != sorted(self.keep, reverse=True) or any(k < 2 for k in self.keep):
            raise ValueError(f"keep must descend and stay at 2 or more, got {self.keep}")
        if self.audit < 0:
            raise ValueError(f"audit must not be negative, got {self.audit}")

    def check(self, total: int, group_size: int) -> None:
        """Raise ValueError if a checkpoint lies outside the steps or keeps more members than a group has."""
        if any(not 0 < step < total for step in self.at):
            raise ValueError(f"prune.at must lie in 1..{total - 1} for {total} steps, got {self.at}")
        if self.keep and self.keep[0] > group_size:
            raise ValueError(f"prune.keep must not exceed the group size {group_size}, got {self.keep}")

    def checkpoints(self, close: int) -> dict[int, int]:
        """Map steps to the number of members that each group keeps, for a window that closes after ``close`` steps.

        With ``self.close``, checkpoints of ``at`` at or after ``close`` give way to the one at ``close``.
        """
        if not self.close:
            return dict(zip(self.at, self.keep, strict=True))
        early = {step: keep for step, keep in zip(self.at, self.keep, strict=False) if step < close}
        return early | {close: self.keep[-1]}

    def survivors(
        self, keep: int, group: Int[Tensor, " b"], scores: Float[Tensor, " b"], iteration: int
    ) -> Int[Tensor, " k"]:
        """Return the rows that survive if each group keeps ``keep`` members, group by group; all of an audited one."""
        audited_group = 0 if self.audit and (iteration + 1) % self.audit == 0 else -1
        surviving_rows = []
        for number in group.unique().tolist():
            rows = (group == number).nonzero()[:, 0]
            surviving_rows.append(rows if number == audited_group else rows[optimal_variance(scores[rows], keep)])
        return torch.cat(surviving_rows)
