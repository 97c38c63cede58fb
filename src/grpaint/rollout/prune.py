"""Expand and prune (Pro-GRPO, arXiv 2512.15347): keep the members of a group whose scores vary the most."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def optimal_variance(scores: Float[Tensor, " g"], keep: int) -> Int[Tensor, " keep"]:
    """Indices, ascending, of the ``keep`` scores with the largest population variance; exact in O(g log g).

    Variance is convex in each score, so the best subset is a head and a tail of the sorted list; the split is scanned.

    Raises:
        ValueError: unless 2 <= keep <= g.
    """
    if not 2 <= keep <= len(scores):
        raise ValueError(f"keep must lie in 2..{len(scores)}, got {keep}")
    values, order = scores.double().sort(stable=True)
    values = values - values.mean()
    head = torch.arange(keep + 1)

    def sums(of: Tensor) -> Tensor:
        running = torch.cat([of.new_zeros(1), of.cumsum(0)])
        return running[head] + running[-1] - running[len(scores) - keep + head]

    variance = sums(values**2) / keep - (sums(values) / keep) ** 2
    split = int(variance.argmax())
    return torch.cat([order[:split], order[len(scores) - keep + split :]]).sort().values


@dataclass(frozen=True)
class Funnel:
    """After ``at[i]`` completed steps, each group is pruned to ``keep[i]`` members by the scores of its previews."""

    at: tuple[int, ...] = (5, 7)
    keep: tuple[int, ...] = (24, 12)

    def __post_init__(self) -> None:
        if len(self.at) != len(self.keep) or list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at must ascend and be as long as keep, got at {self.at}, keep {self.keep}")
        if list(self.keep) != sorted(self.keep, reverse=True) or any(k < 2 for k in self.keep):
            raise ValueError(f"keep must descend and stay at 2 or more, got {self.keep}")

    def check(self, total: int, group_size: int) -> None:
        """Raises ValueError where a checkpoint lies outside the steps or keeps more than there are."""
        if any(not 0 < step < total for step in self.at):
            raise ValueError(f"prune.at must lie in 1..{total - 1} for {total} steps, got {self.at}")
        if self.keep and self.keep[0] > group_size:
            raise ValueError(f"prune.keep must not exceed the group size {group_size}, got {self.keep}")

    def survivors(self, step: int, group: Int[Tensor, " b"], scores: Float[Tensor, " b"]) -> Int[Tensor, " kept"]:
        """Rows that go on after ``step`` completed steps, group by group."""
        keep = self.keep[self.at.index(step)]
        members = [(group == number).nonzero()[:, 0] for number in group.unique().tolist()]
        return torch.cat([rows[optimal_variance(scores[rows], keep)] for rows in members])
