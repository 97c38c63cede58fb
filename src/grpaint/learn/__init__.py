"""From rollouts to losses: reward tables, advantages, surrogates, penalties and objectives."""

from grpaint.learn.advantage import BatchNorm, GroupNorm, History, LeaveOneOut, PerReward
from grpaint.learn.forward import AdvantageWeightedMatching, DiffusionNft, ElboPolicyGradient
from grpaint.learn.objective import Anchor, Denoising, Objective, PolicyGradient, Term
from grpaint.learn.penalty import AdaptiveKl, StepKl, VelocityMse
from grpaint.learn.preference import Dgpo, Dpo
from grpaint.learn.selection import BestWorst, OptimalVariance
from grpaint.learn.stepwise import StepAware
from grpaint.learn.surrogate import DivergenceMask, Guard, PpoClip, Reinforce
from grpaint.learn.table import RewardSet, RewardTable

__all__ = [
    "AdaptiveKl",
    "AdvantageWeightedMatching",
    "Anchor",
    "BatchNorm",
    "BestWorst",
    "Denoising",
    "Dgpo",
    "DiffusionNft",
    "DivergenceMask",
    "Dpo",
    "ElboPolicyGradient",
    "GroupNorm",
    "Guard",
    "History",
    "LeaveOneOut",
    "Objective",
    "OptimalVariance",
    "PerReward",
    "PolicyGradient",
    "PpoClip",
    "Reinforce",
    "RewardSet",
    "RewardTable",
    "StepAware",
    "StepKl",
    "Term",
    "VelocityMse",
]
