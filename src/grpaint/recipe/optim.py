"""Optimizers, learning-rate schedules, the update of behaviour weights, and optimizer state as tensors."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")


@dataclass(frozen=True)
class Adamw:
    """AdamW. Policy gradients are small: ``eps`` must lie far below them, or updates vanish."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_share(beta1=self.beta1, beta2=self.beta2)
        for name, value in (("eps", self.eps), ("weight_decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, got {value}")

    def make(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
        betas = (self.beta1, self.beta2)
        return [
            torch.optim.AdamW(
                list(parameters),
                lr=learning_rate,
                betas=betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                fused=True,
            )
        ]


@dataclass(frozen=True)
class MuonAdamw:
    """Muon for large matrices, AdamW at ``adamw`` times the learning rate for the rest (Jordan et al. 2024)."""

    momentum: float = 0.95
    adamw: float = 0.5
    beta2: float = 0.99

    def __post_init__(self) -> None:
        _check_share(momentum=self.momentum, beta2=self.beta2)
        if not 0 < self.adamw < math.inf:
            raise ValueError(f"adamw must be positive, got {self.adamw}")

    def make(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
        trainable = list(parameters)
        matrices = [p for p in trainable if p.ndim == 2 and min(p.shape) > 64]  # embeddings are no linear maps
        rest = [p for p in trainable if not any(p is matrix for matrix in matrices)]
        rate, betas = self.adamw * learning_rate, (0.9, self.beta2)
        optimizers: list[torch.optim.Optimizer] = []
        if matrices:  # an adapter has none so large
            optimizers.append(
                torch.optim.Muon(
                    matrices, lr=learning_rate, momentum=self.momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
                )
            )
        if rest:
            optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=betas, weight_decay=0.0))
        return optimizers


@dataclass(frozen=True)
class Behaviour:
    """``[behaviour]``: how the weights that sample (the behaviour policy) follow the current ones.

    After iteration n (from 0) they become ``keep * behaviour + (1 - keep) * current``, with keep = min(``most``,
    ``slope`` * (n - ``flat``)), and 0 up to ``flat``. DiffusionNFT's presets are slope 0.001, most 0.5, and slope
    0.0075, flat 75, most 0.999; AWM's is slope 0.001, most 0.3. With slope 0 the current weights sample.
    """

    slope: float = 0.001
    flat: int = 0
    most: float = 0.5

    def __post_init__(self) -> None:
        _check_share(most=self.most)
        if not 0 <= self.slope < math.inf or self.flat < 0:
            raise ValueError(f"slope and flat must not be negative, got {self.slope} and {self.flat}")

    def keep(self, iteration: int) -> float:
        """Return the share of the behaviour weights that stays after ``iteration``."""
        return min(self.most, self.slope * max(iteration - self.flat, 0))


def learning_rate_factor(schedule: Schedule, warmup: int, iteration: int, iterations: int) -> float:
    """Return the share of the full learning rate at ``iteration`` (from 0): linear warm-up, then the schedule to 0."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    progress = (iteration - warmup) / max(iterations - warmup, 1)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer under flat names, for a file."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Take back what :func:`tensors_of` gave."""
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
