"""Optimizers, learning-rate schedules, the update of behaviour weights, and optimizer state as tensors."""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from grpaint.core.errors import CheckpointError

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


def average_keep(ema: float, steps: int) -> float:
    """Return the share of the average weights that stays at optimizer step ``steps`` (from 1): at most ``ema``.

    It is (1 + steps) / (10 + steps) while that is smaller. So early averages follow the current weights, and a short
    run does not export its beginning: after five steps the initial weights have a share of 0.002.
    """
    return min(ema, (1 + steps) / (10 + steps))


def learning_rate_factor(schedule: Schedule, warmup: int, iteration: int, iterations: int) -> float:
    """Return the share of the full learning rate at ``iteration`` (from 0): linear warm-up, then the schedule to 0."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    progress = (iteration - warmup) / max(iterations - warmup, 1)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]


def optimizer_sets(
    optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state of each optimizer as a set of tensors for a file, ``optimizer.0``, ``optimizer.1``, ..

    A tensor's name is that of its parameter in ``parameters`` and of the state, such as ``blocks.0.weight.exp_avg``; a
    parameter that is not in ``parameters`` is named by its index in the optimizer, ``#2.exp_avg``.
    """
    sets = {}
    for number, optimizer in enumerate(optimizers):
        names = _parameter_names(optimizer, parameters)
        states = optimizer.state_dict()["state"]
        sets[f"optimizer.{number}"] = {
            f"{names[index]}.{key}": value for index, state in states.items() for key, value in state.items()
        }
    return sets


def load_optimizer_sets(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Mapping[str, nn.Parameter],
    sets: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Restore the state of ``optimizers`` from what :func:`optimizer_sets` returned, wherever a parameter stands now.

    A parameter without tensors has no state yet. Checkpoints of the first 0.1 have sets ``optimizer0``, .., in which a
    parameter is its index (``0.exp_avg``); they are read until 0.2.

    Raises:
        CheckpointError: a tensor belongs to a parameter that its optimizer does not have.
    """
    for number, optimizer in enumerate(optimizers):
        names = _parameter_names(optimizer, parameters)
        indices = {name: index for index, name in enumerate(names)}
        by_index = {str(index): index for index in range(len(names))}
        states: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for known, tensors in ((indices, sets.get(f"optimizer.{number}")), (by_index, sets.get(f"optimizer{number}"))):
            for name, tensor in (tensors or {}).items():
                parameter, key = _split(name, known)
                states[known[parameter]][key] = tensor
        optimizer.load_state_dict({"state": dict(states), "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_names(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of an optimizer's parameters, in the order of its indices."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names.get(id(parameter), f"#{index}") for index, parameter in enumerate(own)]


def _split(name: str, parameters: Container[str]) -> tuple[str, str]:
    """Split a tensor's name into its parameter's, the longest known one, and that of the state; both may have dots.

    Raises:
        CheckpointError: no parameter's name begins it.
    """
    parameter, _, key = name.rpartition(".")
    while parameter and parameter not in parameters:
        parameter, _, part = parameter.rpartition(".")
        key = f"{part}.{key}"
    if not parameter:
        raise CheckpointError(
            f"the checkpoint's optimizer state is of another model: it has {name}; resume the run that wrote it."
        )
    return parameter, key
