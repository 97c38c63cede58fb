"""Rollouts: which steps are noisy, where samples start, which rows are pruned. Samplers are in ``core/step.py``."""

from grpaint.rollout.plan import Growth
from grpaint.rollout.prune import Funnel, optimal_variance
from grpaint.rollout.rollout import Plan, Rollout, Transition, act, roll
from grpaint.rollout.solver import Tail, multistep
from grpaint.rollout.start import Independent, Reference, Shared
from grpaint.rollout.window import Closed, Prefix, Random, Sliding, Subset, Whole

__all__ = [
    "Closed",
    "Funnel",
    "Growth",
    "Independent",
    "Plan",
    "Prefix",
    "Random",
    "Reference",
    "Rollout",
    "Shared",
    "Sliding",
    "Subset",
    "Tail",
    "Transition",
    "Whole",
    "act",
    "multistep",
    "optimal_variance",
    "roll",
]
