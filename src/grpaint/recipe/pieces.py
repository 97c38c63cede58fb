"""Protocols of the parts of a recipe that belong to a run: model, data, optimizer, logger and weighted reward."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from grpaint.backends.weights import WeightSets
from grpaint.core.errors import ConfigError, GrpaintError
from grpaint.core.path import Path
from grpaint.core.policy import CaptionedImages, Policy, Prompt, Reward, Weights
from grpaint.core.reward import RewardBase
from grpaint.core.runtime import Runtime
from grpaint.core.user_code import describe, interrupted
from grpaint.learn.floor import Floor
from grpaint.learn.node_rewards import Sharing


class Model(Policy, Protocol):
    """A policy that a run can save: it has weight sets and a guidance, and exports a stand-alone file."""

    weights: WeightSets
    runtime: Runtime
    guidance: float

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the header of a file that ``model.start`` can name."""


@runtime_checkable
class Preparing(Protocol):
    """A model that can encode all captions before the first iteration and then free its text encoders."""

    def prepare(self, captions: Iterable[str]) -> int:
        """Encode captions if that saves work later; return how many were not in the cache yet."""


class ModelSpec(Protocol):
    """The ``[model]`` table: what is known before weights are opened, and how to open them.

    Two methods are optional: ``check_size(width, height)`` raises ValueError if the model cannot encode images of that
    size, and ``check_captions(captions)`` ConfigError if it cannot read one of them.
    """

    @property
    def path(self) -> Path:
        """The noising path."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one latent."""

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of its images, in pixels."""

    @property
    def calls(self) -> int:
        """Network calls per prediction: 2 with classifier-free guidance."""

    def from_file(self, file: str) -> "ModelSpec":
        """Return the same model, starting from weights that one of its runs saved."""

    def load(self, runtime: Runtime) -> Model:
        """Open the weights.

        Raises:
            ConfigError, CheckpointError: they are missing, damaged or of another architecture.
        """


def model_description(model: ModelSpec) -> str:
    """Return the model's description of itself, such as its family and folder; empty if it has none."""
    return str(getattr(model, "about", ""))


class Data(Protocol):
    """The ``[data]`` table: training prompts, held-out prompts, and captioned images.

    ``score``: the measure by which a model is judged, or "reward" for the weighted sum of the recipe's rewards.
    ``captioned``: whether there are captioned images; a supervised stage and an anchor need them. Three attributes
    are optional: ``sizes``, the sizes (width, height) of captioned images; ``image_size``, the height and width of the
    only images that ``measures`` can judge; ``missing``, what is not there yet, or an empty text.
    """

    score: ClassVar[str]
    captioned: ClassVar[bool]

    def prepare(self, log: Callable[[str], None]) -> None:
        """Read and check the data, and log what is there; called before weights are opened."""

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Return the ``count`` training prompts of an iteration."""

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Return prompts that training never uses; fewer than ``count`` if there are no more."""

    def batch(self, count: int, iteration: int, seed: int) -> CaptionedImages:
        """Return ``count`` captioned training images, all of one size; of many processes each opens a share of them."""

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Return held-out captioned images of one size; fewer than ``count`` if there are no more."""

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the measures of each image, ``[b]`` by name; ``score`` is one of them unless it is "reward"."""

    def category(self, prompt: Prompt) -> str:
        """Return the name of the category under which evaluations report a prompt."""


@runtime_checkable
class Listed(Protocol):
    """Data whose captions are few enough to be listed before training, held-out ones included."""

    def captions(self) -> Iterable[str]:
        """Return every caption that a run may use."""


class Optimizer(Protocol):
    """Makes torch optimizers for the trainable parameters; ``learning_rate`` is the recipe's."""

    def make(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
        """Return one or more optimizers; all follow the same schedule."""


class Logger(Protocol):
    """A sink for the numbers of a run besides metrics.jsonl, such as TensorBoard.

    One that also takes pictures has a method ``images(iteration, name, images, captions)``: uint8 ``[b, 3, h, w]`` of
    held-out prompts after each evaluation, with a caption each: the prompt and its score.
    """

    def start(self, folder: FilePath, settings: Mapping[str, Any]) -> None:
        """Open the sink; called once, before the first line."""

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        """Write a line; called with every line of metrics.jsonl and evaluations.jsonl."""


@dataclass(frozen=True)
class WeightedReward:
    """A ``[rewards.NAME]`` table: the settings of the reward, and its weight in the run.

    With ``self_test`` the reward must score its own test pair in the right order before the run begins. ``floor`` adds
    a multiplier to its weight while its mean is below the base's; with ``weight = 0`` it is that constraint alone.
    ``place``: of a run of many processes each has the reward, or with "node" the first of each machine, which scores
    the images of the others. It changes no score; unset it is "each".
    """

    reward: Reward
    weight: float = 1.0
    self_test: bool = True
    floor: Floor | None = None
    place: Literal["each", "node"] | None = None

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise ValueError(f"kind must name a function, or a class with __call__, not {self.reward!r:.60}")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")

    @property
    def weight_now(self) -> float:
        """The weight plus the current multiplier of its floor."""
        return self.weight + (self.floor.multiplier if self.floor else 0.0)

    def check(self, key: str) -> None:
        """Check everything that can be checked without opening weights; ``key`` names the table in errors.

        Raises:
            ConfigError, CheckpointError: a file or package is missing, or a file is not of the expected kind.
        """
        try:
            if isinstance(self.reward, RewardBase):
                self.reward.check()
        except ValueError as error:
            raise ConfigError(f"{key}.{error}") from error
        except BaseException as error:
            if isinstance(error, GrpaintError) or interrupted(error):
                raise
            raise ConfigError(f"{key}: its check raised {describe(error)}") from error


def sharing(rewards: Mapping[str, WeightedReward]) -> Sharing:
    """Return which rewards the processes of a machine share."""
    return Sharing(frozenset(name for name, item in rewards.items() if item.place == "node"))


def stateful(piece: Any, name: str = "") -> dict[str, Any]:
    """Return the parts of a recipe that carry state between iterations, by their keys; torch modules are left out."""
    has_state = hasattr(piece, "state_dict") and hasattr(piece, "load_state_dict")
    pieces = {name: piece} if has_state and not isinstance(piece, nn.Module) else {}
    parts: Mapping[str, Any] = piece if isinstance(piece, Mapping) else {}
    if dataclasses.is_dataclass(piece) and not isinstance(piece, type):
        parts = {field.name: getattr(piece, field.name) for field in dataclasses.fields(piece) if field.init}
    for key, part in parts.items():
        pieces |= stateful(part, f"{name}.{key}" if name else key)
    return pieces
