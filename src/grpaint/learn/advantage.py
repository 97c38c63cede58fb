"""From rewards to advantages, per row; groups may be ragged. All statistics are population ones, in fp64.

Spread below rounding counts as none: such rows get exactly 0, and the objective leaves them out.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.errors import RunError
from grpaint.learn.table import RewardTable
from grpaint.rollout.rollout import Rollout

Spread = Literal["group", "batch", "none"]


class Advantage(Protocol):
    """Rewards to advantages.

    ``needs_group`` (True where there is none): groups must have two or more members.
    """

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, "b *steps"]:
        """One number a row, or one a row and step."""


def credit(advantage: Advantage, table: RewardTable, rollout: Rollout) -> Float[Tensor, "b *steps"]:
    """What ``advantage`` gives, found to be finite numbers, one a row or one a row and step.

    Raises:
        RunError: where it is something else.
    """
    given, rows = advantage(table, rollout), len(rollout.group)
    steps = max((transition.step + 1 for transition in rollout.transitions), default=0)
    what = f"advantage {getattr(advantage, '__name__', type(advantage).__name__)}"
    fits = isinstance(given, Tensor) and given.is_floating_point() and given.ndim in (1, 2) and len(given) == rows
    if not fits or (given.ndim == 2 and given.shape[1] < steps):
        told = f"{given.dtype} of shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise RunError(
            f"{what}: it gave {told} for {rows} rows and {steps} steps; wanted are floating-point numbers, [{rows}], "
            f"or [{rows}, {steps}] to credit steps. Mend it and go on with --resume."
        )
    bad = (~given.isfinite()).reshape(rows, -1).any(1).nonzero()[:, 0].tolist()
    if bad:
        worst = ", ".join(f'"{rollout.prompts[int(rollout.group[row])].text}"' for row in bad[:3])
        raise RunError(
            f"{what}: it gave NaN or infinity for {len(bad)} of {rows} rows (prompts: {worst}), and their rewards are "
            "finite. Mend it and go on with --resume."
        )
    return given


def _check(eps: float, clip: float) -> None:
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")


def _standardise(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], where: Bool[Tensor, " b"], std: Spread, eps: float
) -> Float[Tensor, " b"]:
    """(reward - group mean) / (spread + eps) among the rows ``where``, 0 elsewhere and in flat groups."""
    values = reward.double()
    out = torch.zeros_like(values)
    everything = values[where].std(correction=0) if where.any() else 0.0
    for number in group[where].unique().tolist():
        rows = where & (group == number)
        members = values[rows]
        if members.max() - members.min() <= 1e-7 * (1 + members.abs().max()):
            continue
        divisor = {"group": members.std(correction=0) + eps, "batch": everything + eps, "none": 1.0}[std]
        out[rows] = (members - members.mean()) / divisor
    return out


@dataclass(frozen=True)
class GroupNorm:
    """The weighted sum of rewards, relative to the group (GRPO; Flow-GRPO eq. 4).

    ``std``: divide by the spread of the "group" (the paper) or of the whole "batch" (Flow-GRPO's code), or by "none"
    (Dr. GRPO). Clipped to +- ``clip``.
    """

    std: Spread = "group"
    eps: float = 1e-4
    clip: float = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        every = torch.ones_like(rollout.group, dtype=torch.bool)
        advantage = _standardise(table.total(), rollout.group, every, self.std, self.eps)
        return advantage.clamp(-self.clip, self.clip).float()


@dataclass(frozen=True)
class LeaveOneOut:
    """The weighted sum of rewards, relative to the mean of the *other* members of the group (Ahmadian et al. 2024).

    G / (G - 1) times the distance to the group's mean, for G members; ``std`` and ``clip`` as in :class:`GroupNorm`.
    """

    std: Spread = "none"
    eps: float = 1e-4
    clip: float = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        every = torch.ones_like(rollout.group, dtype=torch.bool)
        centred = _standardise(table.total(), rollout.group, every, self.std, self.eps)
        size = rollout.group.bincount()[rollout.group]
        return (centred * size / (size - 1).clamp(min=1)).clamp(-self.clip, self.clip).float()


@dataclass(frozen=True)
class PerReward:
    """Each reward normalised within its group first, then weighted: scaling one by 1000 changes nothing.

    MixGRPO's and DanceGRPO's aggregation. Where a reward does not apply, the weights of the others are rescaled to sum
    to the same; the weights' absolute values are normalised to sum to one. A negative weight turns a reward round.
    """

    std: Spread = "group"
    eps: float = 1e-6
    clip: float = 5.0

    needs_group = True

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        return sum(self.shares(table, rollout).values(), torch.zeros(())).clamp(-self.clip, self.clip).float()

    def shares(self, table: RewardTable, rollout: Rollout) -> dict[str, Float[Tensor, " b"]]:
        """Each reward's part of the advantage."""
        every = torch.ones_like(rollout.group, dtype=torch.bool)
        where = {name: table.applies.get(name, every) for name in table.columns}
        total = torch.stack([abs(table.weight(name)) * where[name].double() for name in table.columns]).sum(0)
        parts = {}
        for name, column in table.columns.items():
            # relative eps: the same advantage whatever unit a reward speaks in
            eps = self.eps * column.double()[where[name]].abs().max().item() if where[name].any() else 0.0
            part = _standardise(column, rollout.group, where[name], self.std, eps)
            parts[name] = part * table.weight(name) / total.where(total != 0, 1.0)  # no reward speaks: part is 0
        return parts


def shares(advantage: Advantage, table: RewardTable, rollout: Rollout) -> dict[str, float]:
    """Each reward's share of the advantage: its mean absolute part, over the sum of all; they sum to 1.

    Advantages of a weighted sum are told by the parts of that sum, relative to the group. All 0: nothing is told.
    """
    while hasattr(advantage, "of"):  # a selection of another's
        advantage = advantage.of
    if isinstance(advantage, PerReward):
        parts = advantage.shares(table, rollout)
    else:
        every = torch.ones_like(rollout.group, dtype=torch.bool)
        parts = {
            name: table.weight(name) * _standardise(column, rollout.group, table.applies.get(name, every), "none", 0.0)
            for name, column in table.columns.items()
        }
    sizes = {name: part.abs().mean().item() for name, part in parts.items()}
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()} if total else {}


@dataclass(frozen=True)
class BatchNorm:
    """Relative to the whole batch (DDPO without a tracker); groups may be of one."""

    eps: float = 1e-8
    clip: float = 5.0

    needs_group = False

    def __post_init__(self) -> None:
        _check(self.eps, self.clip)

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, " b"]:
        reward = table.total()
        one = torch.zeros_like(rollout.group)
        every = torch.ones_like(one, dtype=torch.bool)
        return _standardise(reward, one, every, "group", self.eps).clamp(-self.clip, self.clip).float()


@dataclass
class History:
    """DDPO's per-prompt tracker: relative to the last ``buffer`` rewards of the same prompt, over iterations.

    This iteration's rewards enter first; a prompt with fewer than ``min_count`` falls back on the batch.
    """

    buffer: int = 32
    min_count: int = 16
    eps: float = 1e-6
    clip: float = 5.0
    _seen: dict[str, deque[float]] = field(default_factory=dict, init=False, repr=False)

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
            self._seen.setdefault(text, deque(maxlen=self.buffer)).append(reward[row].item())
        out = torch.zeros_like(reward)
        for text, members in rows.items():
            seen = torch.tensor(self._seen[text], dtype=torch.float64)
            base = reward if len(seen) < self.min_count else seen
            if base.max() - base.min() > 1e-7 * (1 + base.abs().max()):
                out[members] = (reward[members] - base.mean()) / (base.std(correction=0) + self.eps)
        return out.clamp(-self.clip, self.clip).float()

    def state_dict(self) -> dict[str, list[float]]:
        """The rewards remembered, by prompt."""
        return {text: list(seen) for text, seen in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._seen = {text: deque(seen, maxlen=self.buffer) for text, seen in state.items()}
