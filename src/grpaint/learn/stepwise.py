"""Advantages by step: each action is credited with the rewards that it can influence, and no others."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.bounds import Limit
from grpaint.learn.advantage import GroupNorm
from grpaint.learn.table import RewardTable
from grpaint.rollout.rollout import Rollout


@dataclass(frozen=True)
class StepAware:
    """Step-aware advantages (TAFS-GRPO, arXiv 2602.01591: our reconstruction), ``[b, steps]``.

    The predicted clean sample at step j is scored as R_j, normalised within its group; the last R_j is the finished
    image's. An action at step k cannot change predictions at k or before, so its advantage is the mean of R_j over
    j > k, weighted by ``fade`` ** (steps from j to the end), since later previews are more accurate. ``fade`` 0 uses
    the finished image alone (Flow-GRPO), 1 weights all later previews equally. Advantages are clamped to [-``clip``,
    ``clip``]. Needs ``plan.previews = true``.
    """

    fade: float = 0.5
    clip: Limit = 5.0

    needs_group = True
    needs_previews = True

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade must lie in [0, 1], got {self.fade}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, "b steps"]:
        norm = GroupNorm(clip=float("inf"))
        trained_steps = [transition.step for transition in rollout.transitions]
        if not trained_steps:
            return torch.zeros(len(rollout.group), 0)
        first, end = trained_steps[0], trained_steps[-1] + 1  # the finished image counts as the preview at ``end``
        previews = {step: scores for step, scores in rollout.previews.items() if first < step < end}
        scores = {step: norm(RewardTable({"preview": preview}), rollout) for step, preview in previews.items()}
        scores[end] = norm(RewardTable({"final": table.total()}), rollout)
        out = torch.zeros(len(rollout.group), end)
        for k in trained_steps:
            later_steps = [step for step in scores if step > k]
            weights = torch.tensor([self.fade ** (end - step) for step in later_steps])
            out[:, k] = sum(w * scores[step] for w, step in zip(weights, later_steps, strict=True)) / weights.sum()
        return out.clamp(-self.clip, self.clip)
