"""Advantages by step: an action is credited with the rewards that it can influence, and with no other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.learn.advantage import GroupNorm
from grpaint.learn.table import RewardTable
from grpaint.rollout.rollout import Rollout


@dataclass(frozen=True)
class StepAware:
    """Step-aware advantages (TAFS-GRPO, arXiv 2602.01591: our reconstruction), ``[b, steps]``.

    The clean prediction at step j is scored as R_j and normalised within its group; the finished image is the last of
    them. An action at step k changes nothing that was predicted at k or before, so it gets the mean of R_j over
    j > k, weighted by ``fade`` ** (steps from j to the end): late previews are the more faithful ones. 0 credits the
    finished image alone (Flow-GRPO), 1 all later ones alike. Needs ``plan.previews = true``.
    """

    fade: float = 0.5
    clip: float = 5.0

    needs_group = True
    needs_previews = True

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade must lie in [0, 1], got {self.fade}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")

    def __call__(self, table: RewardTable, rollout: Rollout, /) -> Float[Tensor, "b steps"]:
        norm = GroupNorm(clip=float("inf"))
        acted = [transition.step for transition in rollout.transitions]
        if not acted:
            return torch.zeros(len(rollout.group), 0)
        end = acted[-1] + 1  # the finished image is what the step after the last action predicts
        seen = {step: scores for step, scores in rollout.previews.items() if acted[0] < step < end}
        scores = {step: norm(RewardTable({"preview": score}), rollout) for step, score in seen.items()}
        scores[end] = norm(RewardTable({"final": table.total()}), rollout)
        out = torch.zeros(len(rollout.group), end)
        for k in acted:
            later = [step for step in scores if step > k]
            weights = torch.tensor([self.fade ** (end - step) for step in later])
            out[:, k] = sum(w * scores[step] for w, step in zip(weights, later, strict=True)) / weights.sum()
        return out.clamp(-self.clip, self.clip)
