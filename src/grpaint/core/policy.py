"""Protocols for models, conditioning and rewards, and the prompts and captioned images that they work on."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
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
    """A caption, its metadata, and optionally the image ``[3, h, w]`` in [0, 1] that it describes."""

    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    reference: Tensor | None = None


@dataclass(frozen=True)
class CaptionedImages:
    """Captions and the images that they describe; ``load`` reads a slice of these as ``[b, 3, h, w]`` in [0, 1]."""

    prompts: list[Prompt]
    load: Callable[[slice], Tensor]

    def images(self, rows: slice = ALL) -> Float[Tensor, "b 3 h w"]:
        """Read the images of ``rows``."""
        return self.load(rows)


class Reward(Protocol):
    """A function from images ``[b, 3, h, w]`` in [0, 1] and their prompts to ``b`` scores; higher is better."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt], /) -> Float[Tensor, " b"]:
        """Return one finite score per image."""


@runtime_checkable
class ExternalReward(Protocol):
    """A reward that another process computes: it is connected for the length of a run and may run beside others."""

    def start(self) -> list[str]:
        """Connect, before weights are opened; returns notes for the log.

        Raises:
            RewardError: if it cannot be reached, or does not fit the settings.
        """

    def stop(self) -> None:
        """Disconnect; does nothing if never started."""


@runtime_checkable
class PeopleReward(Protocol):
    """A reward for which people look at images; it works in the folder of a run, and of many processes one has it.

    With weight 0 it takes no part in training: people compare the pictures of evaluations with the base's.
    """

    def join_run(self, folder: FilePath, stopping: Callable[[], int]) -> None:
        """Take note of the folder, before :meth:`ExternalReward.start`.

        ``stopping`` returns the number of the signal that asks the run to stop, or 0: scoring must not outlast it.
        """

    def prefer(
        self, before: Float[Tensor, "b 3 h w"], after: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]
    ) -> Float[Tensor, " b"]:
        """Return the share of people, in [0, 1], who prefer ``after`` to ``before``; NaN where nobody has answered."""


class Condition(Protocol):
    """Encoded prompts, one row per prompt."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def rows(self, index: Tensor) -> Self:
        """Select rows by ``index``, in its order; an index may repeat."""


class Meter:
    """Counts model evaluations: a forward pass of one sample is 1, a backward pass 2; guidance doubles both.

    ``counts`` has one account per purpose: ``training`` for the cost of the recipe's method, and others for
    evaluation and self-tests.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._account = "training"
        self._captions = self._truncated = 0
        self._common: Counter[str] = Counter()  # the counts when they were last the same on all processes

    def forward(self, rows: int, *, networks: int = 1, recomputed: bool = False) -> None:
        """Count a forward pass of ``rows`` samples, and its backward pass too if gradients are enabled.

        ``recomputed``: the backward pass repeats the forward pass (activation checkpointing).
        """
        backward = 2 + recomputed if torch.is_grad_enabled() else 0
        self.counts[self._account] += rows * networks * (1 + backward)

    def captions(self, read: int, truncated: int) -> None:
        """Count captions that were encoded, and how many of them were truncated; ignored outside training."""
        if self._account == "training":
            self._captions, self._truncated = self._captions + read, self._truncated + truncated

    def truncated(self) -> dict[str, float]:
        """Return the share of captions truncated since the last call, under its metric's name, and reset the count."""
        share = {"prompts/truncated": self._truncated / self._captions} if self._captions else {}
        self._captions = self._truncated = 0
        return share

    def restore(self, counts: Mapping[str, int]) -> None:
        """Continue from the counts of a checkpoint."""
        self.counts, self._common = Counter(counts), Counter(counts)

    def tally(self) -> tuple[dict[str, int], int, int]:
        """Return what this process has counted since :meth:`merge`: evaluations, captions read, captions truncated."""
        return dict(self.counts - self._common), self._captions, self._truncated

    def merge(self, every: Sequence[tuple[Mapping[str, int], int, int]]) -> None:
        """Take the sums of what every process has counted; ``every`` holds the answers of :meth:`tally`."""
        self.counts = self._common + sum((Counter(counts) for counts, _, _ in every), Counter[str]())
        self._captions, self._truncated = (sum(values) for values in list(zip(*every, strict=True))[1:])
        self._common = Counter(self.counts)

    @contextmanager
    def account(self, name: str) -> Iterator[None]:
        """Count the evaluations inside the ``with`` block under ``name``."""
        previous, self._account = self._account, name
        try:
            yield
        finally:
            self._account = previous


class Policy(Protocol):
    """A text-to-image model.

    It handles guidance, casting, adapter switching and offload itself, so that these cannot differ between rollout and
    replay. ``weights`` selects the parameters: those being trained ("current"), the behaviour policy's, the running
    average of the trained ones, or the frozen reference's.
    """

    path: Path
    meter: Meter

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """Encode captions, one row per caption."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b *latent"]:
        """Encode images in [0, 1] to clean latents."""

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Float[Tensor, "b *latent"]:
        """Return keyed standard-normal latents on the model's device; see :func:`grpaint.core.rng.noise`."""

    def predict(
        self, x: Float[Tensor, "b *latent"], here: Point, cond: Condition, weights: Weights = "current"
    ) -> Prediction:
        """Predict the clean sample and the noise in ``x`` at the point ``here``, in fp32."""

    def decode(self, x0: Float[Tensor, "b *latent"]) -> Float[Tensor, "b 3 h w"]:
        """Decode clean latents to images in [0, 1]."""

    def blend(self, into: Weights, keep: float, extrapolation: float = 0.0) -> None:
        """Update weights in place: ``into <- keep * into + (1 - keep) * (current + extrapolation * change)``.

        ``change`` is that of the current network from the reference one.
        """

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the parameters that the optimizer updates."""
