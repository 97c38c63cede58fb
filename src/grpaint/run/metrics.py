"""What an iteration's line in metrics.jsonl says of its rollout, its rewards and its previews."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from grpaint.learn.advantage import Advantage, advantage_shares
from grpaint.learn.table import RewardSet, RewardTable
from grpaint.recipe.pieces import WeightedReward
from grpaint.rollout.prune import Funnel, ranks
from grpaint.rollout.rollout import Rollout


def rollout_metrics(rollout: Rollout, table: RewardTable, advantage: Tensor) -> dict[str, float]:
    """Return mean and std of every reward, the number of groups without an advantage, and the mean |advantage|."""
    metrics: dict[str, float] = {}
    for name, column in table.columns.items():
        applies = table.applies.get(name, torch.ones_like(rollout.group, dtype=torch.bool))
        if applies.any():
            metrics[f"reward/{name}"] = column[applies].mean().item()
            metrics[f"reward/{name}/std"] = column[applies].std(correction=0).item()
    moving = advantage.reshape(len(advantage), -1).ne(0).any(1)
    groups = rollout.group.unique()
    flat = sum(not moving[rollout.group == number].any() for number in groups.tolist())
    metrics["advantage/zero_spread_groups"] = int(flat)
    metrics["advantage/abs_mean"] = advantage.abs().mean().item()
    return metrics


def reward_metrics(
    rewards: Mapping[str, WeightedReward],
    reward_set: RewardSet,
    advantage: Advantage,
    rollout: Rollout,
    table: RewardTable,
) -> dict[str, float]:
    """Return, by reward, the share of truncated captions, the floor's multiplier and the share of the advantage."""
    truncated = reward_set.truncated(rollout.prompts)
    metrics = {f"reward/{name}/truncated": share for name, share in truncated.items()}
    for name, item in rewards.items():
        if item.floor:
            metrics[f"reward/{name}/multiplier"] = item.floor.multiplier
    if len(table.columns) > 1:
        for name, share in advantage_shares(advantage, table, rollout).items():
            metrics[f"advantage/share/{name}"] = share
    return metrics


def preview_metrics(funnel: Funnel | None, rollout: Rollout, table: RewardTable) -> dict[str, float]:
    """Return how well previews ranked a group that was not pruned (Spearman), in iterations that have such a group."""
    audited = rollout.group == 0
    if not (funnel and funnel.keep and audited.sum() > funnel.keep[-1]):
        return {}
    final = ranks(table.total()[audited])
    pairs = {step: torch.stack([ranks(scores[audited]), final]) for step, scores in rollout.previews.items()}
    correlations = {f"prune/rank_correlation/{step}": pair.corrcoef()[0, 1].item() for step, pair in pairs.items()}
    return {name: value for name, value in correlations.items() if not math.isnan(value)}  # NaN: all scored alike
