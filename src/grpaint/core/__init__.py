"""Paths, samplers, one denoising step, keyed noise, and protocols; imports no other part of grpaint.

Shapes used throughout:

    b        rows (samples) of a batch, or of a whole rollout
    k        rows that take part in one step (k <= b)
    p        prompts; a rollout has p groups of g members, so b = p * g until rows are pruned
    *latent  the shape of one sample in the model's latent space: ``c h w`` or ``tokens channels``
    steps    columns of a per-step table; step k goes from grid[k] to grid[k + 1], noise to data

Computations keep the dtype of their inputs (fp64 in, fp64 out).
"""

from grpaint.core.errors import (
    CheckpointError,
    ConfigError,
    GrpaintError,
    MemoryExhausted,
    MissingExtra,
    RewardError,
    RunError,
)
from grpaint.core.path import FlowPath, Path, Point, VpPath
from grpaint.core.policy import Condition, Meter, Policy, Prompt, Reward, Weights
from grpaint.core.prediction import Prediction, read
from grpaint.core.rng import noise, permutation, uniform
from grpaint.core.step import Annealed, Cps, DanceSde, Ddim, FlowSde, Gaussian, Lcm, Ode, Sampler, step

__all__ = [
    "Annealed",
    "CheckpointError",
    "Condition",
    "ConfigError",
    "Cps",
    "DanceSde",
    "Ddim",
    "FlowPath",
    "FlowSde",
    "Gaussian",
    "GrpaintError",
    "Lcm",
    "MemoryExhausted",
    "Meter",
    "MissingExtra",
    "Ode",
    "Path",
    "Point",
    "Policy",
    "Prediction",
    "Prompt",
    "Reward",
    "RewardError",
    "RunError",
    "Sampler",
    "VpPath",
    "Weights",
    "noise",
    "permutation",
    "read",
    "step",
    "uniform",
]
