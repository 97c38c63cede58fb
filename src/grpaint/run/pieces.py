"""Protocols of the pieces that a run, and not an algorithm, is made of."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grpaint.backends.runtime import Runtime
from grpaint.backends.weights import WeightSets
from grpaint.core.path import Path
from grpaint.core.policy import Policy, Prompt, Reward, Weights


class Model(Policy, Protocol):
    """A policy that a run can save: it shows its weight sets and guidance, and exports a stand-alone file."""

    weights: WeightSets
    runtime: Runtime
    guidance: float

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header of a file that ``model.start`` can name."""


class ModelSpec(Protocol):
    """The ``[model]`` table: what is known before weights are opened, and how to open them."""

    @property
    def path(self) -> Path:
        """The noising path."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""

    @property
    def calls(self) -> int:
        """Network calls a prediction: 2 with classifier-free guidance."""

    def from_file(self, file: str) -> "ModelSpec":
        """The same model, starting from weights that a run of it saved."""

    def load(self, runtime: Runtime) -> Model:
        """Open the weights."""


def described(model: ModelSpec) -> str:
    """What a model says of itself and where it was read; empty where it says nothing."""
    return str(getattr(model, "about", ""))


class Data(Protocol):
    """The ``[data]`` table: prompts to train on, prompts to be judged on, and captioned images."""

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Training prompts of an iteration."""

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Prompts that training never shows."""

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Captioned training images in [0, 1]."""

    def held_out_images(self, count: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Held-out captioned images."""

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What an evaluation records, ``[b]`` each; ``strict`` is the score."""

    def category(self, prompt: Prompt) -> str:
        """The name under which a prompt is reported."""


class Optimizer(Protocol):
    """Makes torch optimizers for the trainable parameters; ``learning_rate`` is the recipe's."""

    def make(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
        """One or more, that share the schedule."""


class Logger(Protocol):
    """Something besides metrics.jsonl that wants to see the numbers."""

    def start(self, folder: FilePath, settings: Mapping[str, Any]) -> None:
        """Called once, before the first line."""

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        """Called with every line of metrics.jsonl and evaluations.jsonl."""


@dataclass(frozen=True)
class WeightedReward:
    """A ``[rewards.NAME]`` table: the reward's own settings, and ``weight`` among them."""

    reward: Reward
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise ValueError(f"kind must name a function, or a class with __call__, not {self.reward!r:.60}")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")
