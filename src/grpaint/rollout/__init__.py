"""Making trajectories: which steps explore, where samples start, who is pruned, and the rollout itself."""

from grpaint.rollout.prune import Funnel, optimal_variance
from grpaint.rollout.rollout import Plan, Rollout, Transition, act, roll
from grpaint.rollout.start import Independent, Reference, Shared
from grpaint.rollout.window import Closed, Prefix, Random, Whole

__all__ = [
    "Closed",
    "Funnel",
    "Independent",
    "Plan",
    "Prefix",
    "Random",
    "Reference",
    "Rollout",
    "Shared",
    "Transition",
    "Whole",
    "act",
    "optimal_variance",
    "roll",
]
