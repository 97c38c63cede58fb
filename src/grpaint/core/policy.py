"""What a training loop needs of a model, of its conditioning, of a prompt and of a reward."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.path import Path, Point
from grpaint.core.prediction import Prediction
from grpaint.core.rng import Key

Weights = Literal["current", "behaviour", "average", "reference"]
ALL = slice(None)


@dataclass(frozen=True)
class Prompt:
    """A caption, what is known about it, and maybe an image ``[3, h, w]`` in [0, 1] that it describes."""

    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    reference: Tensor | None = None


@dataclass(frozen=True)
class Captioned:
    """Captions, and the images that they describe: ``load`` opens a run of them as ``[b, 3, h, w]`` in [0, 1]."""

    prompts: list[Prompt]
    load: Callable[[slice], Tensor]

    def images(self, rows: slice = ALL) -> Float[Tensor, "b 3 h w"]:
        """The images of ``rows``, opened now."""
        return self.load(rows)


class Reward(Protocol):
    """Images ``[b, 3, h, w]`` in [0, 1] and their prompts to ``b`` scores; higher is better."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt], /) -> Float[Tensor, " b"]:
        """One finite score an image."""


@runtime_checkable
class Elsewhere(Protocol):
    """A reward that lives in another process: it is started with a run, and may be asked beside others."""

    def start(self) -> list[str]:
        """Reach it, before weights are opened; what a person should know of it. Raises RewardError."""

    def stop(self) -> None:
        """Let go of it; harmless where it was never started."""


class Condition(Protocol):
    """Encoded prompts, one row each."""

    def __len__(self) -> int:
        """How many rows it holds."""

    def rows(self, index: Tensor) -> Self:
        """The rows that ``index`` names, in that order, repeated where it repeats."""


class Meter:
    """Counts model evaluations: a forward of one sample is 1, a backward 2; guidance doubles both.

    What a recipe's method costs is booked under ``training``; evaluation and self-tests under names of their own.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._account = "training"
        self._captions = self._truncated = 0

    def forward(self, rows: int, *, networks: int = 1, recomputed: bool = False) -> None:
        """Book a forward of ``rows`` samples; with gradients enabled its backward is booked with it.

        ``recomputed``: the backward runs the forward once more (activation checkpointing).
        """
        backward = 2 + recomputed if torch.is_grad_enabled() else 0
        self.counts[self._account] += rows * networks * (1 + backward)

    def captions(self, read: int, truncated: int) -> None:
        """Book captions that were read, and how many of them not to their end; those of training alone count."""
        if self._account == "training":
            self._captions, self._truncated = self._captions + read, self._truncated + truncated

    def truncated(self) -> dict[str, float]:
        """By its metric's name the share of captions, since this was last asked, that were not read to their end."""
        share = {"prompts/truncated": self._truncated / self._captions} if self._captions else {}
        self._captions = self._truncated = 0
        return share

    @contextmanager
    def account(self, name: str) -> Iterator[None]:
        """Book what happens inside under ``name``."""
        before, self._account = self._account, name
        try:
            yield
        finally:
            self._account = before


class Policy(Protocol):
    """A text-to-image model as the loops see it.

    Guidance, casting, adapter switching and offload happen behind it, so that they cannot differ between rollout and
    replay. ``weights`` names whose parameters answer: the ones being trained, the behaviour policy's, their running
    average, or the frozen reference.
    """

    path: Path
    meter: Meter

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """Encode captions, one row each."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b *latent"]:
        """Clean latents of images in [0, 1]."""

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Float[Tensor, "b *latent"]:
        """Keyed standard-normal latents on the model's device; see :func:`grpaint.core.rng.noise`."""

    def predict(
        self, x: Float[Tensor, "b *latent"], here: Point, cond: Condition, weights: Weights = "current"
    ) -> Prediction:
        """What the network believes about ``x`` at ``here``, in fp32."""

    def decode(self, x0: Float[Tensor, "b *latent"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1]."""

    def blend(self, into: Weights, keep: float) -> None:
        """``into <- keep * into + (1 - keep) * current``."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What the optimizer moves."""
