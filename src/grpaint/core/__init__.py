"""Mathematics and protocols: torch and nothing else of grpaint.

Legend of the shapes used everywhere:

    b        rows (samples) of a batch, or of a whole rollout
    k        rows that act at one step (k <= b)
    p        prompts; a rollout has p groups of g members, b = p * g until something is pruned
    *latent  the shape of one sample as the model sees it: ``c h w`` or ``tokens channels``
    steps    columns of a per-step table; step k goes from grid[k] to grid[k + 1], noise to data

Numbers are computed in the dtype they are given (fp64 in, fp64 out).
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
from grpaint.core.step import Annealed, Cps, DanceSde, Ddim, FlowSde, Gaussian, Ode, Sampler, step

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
