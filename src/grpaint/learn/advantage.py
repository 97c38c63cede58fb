"""Advantages: from rewards to one number per row. Groups may differ in size; statistics are of populations, in fp64.

A spread below rounding counts as none: such rows get exactly 0, and the objective leaves them out.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.bounds import Limit
from grpaint.core.errors import RunError
from grpaint.learn.table import RewardTable
from grpaint.rollout.rollout import Rollout

Spread = Literal["group", "batch", "none"]


class Advantage(Protocol):
    """A function from rewards to advantages.

    An optional attribute ``needs_group`` (default True): whether groups must have two or more members.
    """

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, "b *steps"]:
        """Return one number per row, or one per row and step."""


def compute_advantage(advantage: Advantage, table: RewardTable, rollout: Rollout) -> Float[Tensor, "b *steps"]:
    """Evaluate ``advantage`` and check that it is finite, with one number per row or per row and step.

    Raises:
        RunError: if it is not; the message names the advantage and the shape, or the prompts.
    """
    values, rows = advantage(table, rollout), len(rollout.group)
    steps = max((transition.step + 1 for transition in rollout.transitions), default=0)
    name = f"advantage {getattr(advantage, '__name__', type(advantage).__name__)}"
    fits = isinstance(values, Tensor) and values.is_floating_point() and values.ndim in (1, 2) and len(values) == rows
    if not fits or (values.ndim == 2 and values.shape[1] < steps):
        form = f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise RunError(
            f"{name}: it returned {form} for {rows} rows and {steps} steps; it must return floating-point numbers of "
            f"shape [{rows}], or [{rows}, {steps}] for advantages by step. Fix it and continue with --resume."
        )
    bad_rows = (~values.isfinite()).reshape(rows, -1).any(1).nonzero()[:, 0].tolist()
    if bad_rows:
        first = ", ".join(f'"{rollout.prompts[int(rollout.group[row])].text}"' for row in bad_rows[:3])
        raise RunError(
            f"{name}: it returned NaN or infinity for {len(bad_rows)} of {rows} rows (prompts: {first}), whose rewards "
            "are finite. Fix it and continue with --resume."
        )
    return values


def _check(eps: float, clip: float) -> None:
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")


def _standardise(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], mask: Bool[Tensor, " b"], std: Spread, eps: float
) -> Float[Tensor, " b"]:
    """Compute (reward - group mean) / (spread + eps) for the rows ``mask``; 0 elsewhere and in constant groups."""
    values = reward.double()
    out = torch.zeros_like(values)
    batch_std = values[mask].std(correction=0) if mask.any() else 0.0
    for number in group[mask].unique().tolist():
        rows = mask & (group == number)
        members = values[rows]
        if members.max() - members.min() <= 1e-7 * (1 + members.abs().max()):
            continue
        divisor = {"group": members.std(correction=0) + eps, "batch": batch_std + eps, "none": 1.0}[std]
        out[rows] = (members - members.mean()) / divisor
    return out


@dataclass(frozen=True)
class GroupNorm:
    """The weighted sum of rewards, relative to the group (GRPO; Flow-GRPO eq. 4).

    ``std``: divide by the standard deviation of the "group" (the paper) or of the whole "batch" (Flow-GRPO's code), or
    do not divide: "none" (Dr. GRPO). Clipped to +- ``clip``.
    """

    std: Spread = "group"
    eps: float = 1e-4
    clip: Limit = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        advantage = _standardise(table.total(), rollout.group, table.scored(), self.std, self.eps)
        return advantage.clamp(-self.clip, self.clip).float()


@dataclass(frozen=True)
class LeaveOneOut:
    """The weighted sum of rewards, relative to the mean of the *other* members of the group (Ahmadian et al. 2024).

    For G members it equals G / (G - 1) times the distance to the group's mean; ``std`` and ``clip`` are as in
    :class:`GroupNorm`.
    """

    std: Spread = "none"
    eps: float = 1e-4
    clip: Limit = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        scored = table.scored()
        difference = _standardise(table.total(), rollout.group, scored, self.std, self.eps)
        size = rollout.group[scored].bincount(minlength=len(rollout.prompts))[rollout.group]
        return (difference * size / (size - 1).clamp(min=1)).clamp(-self.clip, self.clip).float()


@dataclass(frozen=True)
class PerReward:
    """Each reward normalised within its group first, then weighted: scaling one by 1000 changes nothing.

    MixGRPO's and DanceGRPO's aggregation. In each row, the absolute weights of the rewards that apply to it are
    normalised to sum to one. A negative weight makes lower scores better.
    """

    std: Spread = "group"
    eps: float = 1e-6
    clip: Limit = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        return sum(self.shares(table, rollout).values(), torch.zeros(())).clamp(-self.clip, self.clip).float()

    def shares(self, table: RewardTable, rollout: Rollout) -> dict[str, Float[Tensor, " b"]]:
        """Return the part of the advantage that each reward contributes; they sum to the advantage before clipping."""
        all_rows = torch.ones_like(rollout.group, dtype=torch.bool)
        masks = {name: table.applies.get(name, all_rows) for name in table.columns}
        total = torch.stack([abs(table.weight(name)) * masks[name].double() for name in table.columns]).sum(0)
        parts = {}
        for name, column in table.columns.items():
            # eps relative to the scores, so that their unit does not change the advantage
            eps = self.eps * column.double()[masks[name]].abs().max().item() if masks[name].any() else 0.0
            part = _standardise(column, rollout.group, masks[name], self.std, eps)
            parts[name] = part * table.weight(name) / total.where(total != 0, 1.0)  # no reward applies: part is 0
        return parts


def advantage_shares(advantage: Advantage, table: RewardTable, rollout: Rollout) -> dict[str, float]:
    """Return each reward's share of the advantage: its mean absolute part, divided by the sum over rewards.

    For the advantage of a weighted sum, a part is the weighted reward minus its group mean. Empty if all parts are 0.
    """
    while hasattr(advantage, "of"):  # a selection of rows wraps another advantage
        advantage = advantage.of
    if isinstance(advantage, PerReward):
        parts = advantage.shares(table, rollout)
    else:
        all_rows = torch.ones_like(rollout.group, dtype=torch.bool)
        parts = {
            name: table.weight(name)
            * _standardise(column, rollout.group, table.applies.get(name, all_rows), "none", 0.0)
            for name, column in table.columns.items()
        }
    sizes = {name: part.abs().mean().item() for name, part in parts.items()}
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()} if total else {}


@dataclass(frozen=True)
class BatchNorm:
    """Rewards relative to the whole batch (DDPO without a tracker); a group may have one member."""

    eps: float = 1e-8
    clip: Limit = 5.0

    needs_group = False

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        reward = table.total()
        one_group = torch.zeros_like(rollout.group)
        all_rows = torch.ones_like(one_group, dtype=torch.bool)
        return _standardise(reward, one_group, all_rows, "group", self.eps).clamp(-self.clip, self.clip).float()


@dataclass
class History:
    """Rewards relative to the last ``buffer`` rewards of the same prompt, across iterations (DDPO's tracker).

    This iteration's rewards are added first; a prompt with fewer than ``min_count`` rewards uses the batch instead.
    """

    buffer: int = 32
    min_count: int = 16
    eps: float = 1e-6
    clip: Limit = 5.0
    _rewards_by_prompt: dict[str, deque[float]] = field(default_factory=dict, init=False, repr=False)

    needs_group = False

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)
        if not 1 <= self.min_count <= self.buffer:
            raise ValueError(f"min_count must lie in 1..buffer, got {self.min_count} for buffer {self.buffer}")

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        reward = table.total().double()
        texts = [rollout.prompts[number].text for number in rollout.group.tolist()]
        rows = defaultdict(list)
        for row, text in enumerate(texts):
            rows[text].append(row)
            self._rewards_by_prompt.setdefault(text, deque(maxlen=self.buffer)).append(reward[row].item())
        out = torch.zeros_like(reward)
        for text, members in rows.items():
            history = torch.tensor(self._rewards_by_prompt[text], dtype=torch.float64)
            base = reward if len(history) < self.min_count else history
            if base.max() - base.min() > 1e-7 * (1 + base.abs().max()):
                out[members] = (reward[members] - base.mean()) / (base.std(correction=0) + self.eps)
        return out.clamp(-self.clip, self.clip).float()

    def state_dict(self) -> dict[str, list[float]]:
        """Return the stored rewards by prompt."""
        return {text: list(rewards) for text, rewards in self._rewards_by_prompt.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._rewards_by_prompt = {text: deque(rewards, maxlen=self.buffer) for text, rewards in state.items()}
