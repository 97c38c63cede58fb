"""Protocols of the pieces that a run, and not an algorithm, is made of."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from grpaint.backends.weights import WeightSets
from grpaint.core.errors import ConfigError
from grpaint.core.path import Path
from grpaint.core.policy import CaptionedImages, Policy, Prompt, Reward, Weights
from grpaint.core.reward import RewardBase
from grpaint.core.runtime import Runtime
from grpaint.learn.floor import Floor


class Model(Policy, Protocol):
    """A policy that a run can save: it shows its weight sets and guidance, and exports a stand-alone file."""

    weights: WeightSets
    runtime: Runtime
    guidance: float

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header of a file that ``model.start`` can name."""


@runtime_checkable
class Preparing(Protocol):
    """A model that may read captions before the first iteration and then let its text encoders go."""

    def prepare(self, captions: Iterable[str]) -> int:
        """Read captions, where that is of use later; how many had not been read before."""


class ModelSpec(Protocol):
    """The ``[model]`` table: what is known before weights are opened, and how to open them."""

    @property
    def path(self) -> Path:
        """The noising path."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of an image that it draws."""

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
    """The ``[data]`` table: prompts to train on, prompts to be judged on, and captioned images.

    ``score``: the measure by which a model is judged, or "reward" for the weighted sum of the recipe's rewards.
    ``captioned``: whether there are images, without which there is neither a supervised stage nor an anchor.
    """

    score: ClassVar[str]
    captioned: ClassVar[bool]

    def prepare(self, log: Callable[[str], None]) -> None:
        """Read and check what can be checked, and say what is there; called before weights are opened."""

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Training prompts of an iteration."""

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Prompts that training never shows; fewer than ``count`` where there are no more."""

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Captioned training images in [0, 1], all of one size."""

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Held-out captioned images, all of one size; fewer than ``count`` where there are no more."""

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What an evaluation records of each image, ``[b]`` each, ``score`` among them unless that is "reward"."""

    def category(self, prompt: Prompt) -> str:
        """The name under which a prompt is reported."""


@runtime_checkable
class Listed(Protocol):
    """Data whose captions are few enough to be known beforehand, held-out ones among them."""

    def captions(self) -> Iterable[str]:
        """Every caption that a run may ask for."""


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
    """A ``[rewards.NAME]`` table: the reward's own settings, and these among them.

    ``self_test`` asks it about a pair of its own before the run begins. ``floor`` adds a multiplier to its weight while
    its mean is below the base's; with ``weight = 0`` the reward is that constraint and nothing else.
    """

    reward: Reward
    weight: float = 1.0
    self_test: bool = True
    floor: Floor | None = None

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise ValueError(f"kind must name a function, or a class with __call__, not {self.reward!r:.60}")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")

    @property
    def weight_now(self) -> float:
        """The weight, and the multiplier of its floor."""
        return self.weight + (self.floor.multiplier if self.floor else 0.0)

    def check(self, key: str) -> None:
        """Refuse what needs no weights opened.

        Raises:
            ConfigError, CheckpointError: a file or package is missing, or a file is not what its name says.
        """
        try:
            if isinstance(self.reward, RewardBase):
                self.reward.check()
        except ValueError as error:
            raise ConfigError(f"{key}.{error}") from error


def stateful(piece: Any, name: str = "") -> dict[str, Any]:
    """The parts of a recipe that carry state from one iteration to the next, by their keys; not torch modules."""
    has_state = hasattr(piece, "state_dict") and hasattr(piece, "load_state_dict")
    found = {name: piece} if has_state and not isinstance(piece, nn.Module) else {}
    parts: Mapping[str, Any] = piece if isinstance(piece, Mapping) else {}
    if dataclasses.is_dataclass(piece) and not isinstance(piece, type):
        parts = {field.name: getattr(piece, field.name) for field in dataclasses.fields(piece) if field.init}
    for key, part in parts.items():
        found |= stateful(part, f"{name}.{key}" if name else key)
    return found
