"""The base class of the built-in rewards: their weight files, settings check and self-test.

A plain function can be a reward too; it has none of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from grpaint.core.policy import Prompt


@dataclass(frozen=True)
class Pair:
    """A self-test: ``better`` must score higher than ``worse``, and both scores must lie in [``low``, ``high``]."""

    better: Float[Tensor, "3 h w"]
    worse: Float[Tensor, "3 h w"]
    prompt: Prompt
    low: float
    high: float


@dataclass(frozen=True)
class WeightSource:
    """A setting that names weights; its ``location`` is a file, a folder, or a repository on the Hugging Face hub.

    ``files`` are the file names or patterns needed from a folder or repository; the first is a name and must exist.
    ``origin`` is the hub repository or URL where the weights were published.
    """

    setting: str
    location: str
    files: tuple[str, ...]
    origin: str


class RewardBase:
    """Optional properties of a reward, each with a neutral default."""

    needs_reference: ClassVar[bool] = False  # whether it compares with the prompt's reference image
    needs_caption: ClassVar[bool] = True  # whether it reads the prompt's text
    partial: ClassVar[bool] = False  # whether it gives NaN for images that it has no score of, which are left out
    image_size: ClassVar[tuple[int, int] | None] = None  # height and width, if it scores images of one size alone

    @property
    def best(self) -> float | None:
        """The highest possible score, which all images may reach, or None if scores have no maximum."""
        return None

    def sources(self) -> tuple[WeightSource, ...]:
        """Return the weights that it opens."""
        return ()

    def check(self) -> None:
        """Check the settings before any weights are opened.

        Raises:
            ValueError: if a setting is invalid; the message names the setting, its value, the reason and the fix.
            MissingExtra, CheckpointError: if a package or a whole file is missing.
        """

    def pair(self) -> Pair | None:
        """Return its self-test, or None if it has none."""
        return None

    def truncated(self, prompts: Sequence[Prompt]) -> int | None:
        """Count the captions longer than its text limit; None if it has no limit."""
        return None
