"""What a reward of ours says about itself beyond its scores; a plain function says nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from grpaint.core.policy import Prompt


@dataclass(frozen=True)
class Pair:
    """A self-test: the first of two images must score higher than the second, and both within ``low`` and ``high``."""

    better: Float[Tensor, "3 h w"]
    worse: Float[Tensor, "3 h w"]
    prompt: Prompt
    low: float
    high: float


@dataclass(frozen=True)
class Source:
    """A setting that names weights: a file, a folder with ``files``, or a hub's repository that has them.

    ``files`` are names or patterns, and the first, a name, must be there; ``origin`` is where it was published, a
    hub's repository or an address.
    """

    setting: str
    given: str
    files: tuple[str, ...]
    origin: str


class RewardBase:
    """What every reward of ours answers; each has a default that says nothing."""

    needs_reference: ClassVar[bool] = False  # looks at the prompt's reference image
    needs_caption: ClassVar[bool] = True

    @property
    def best(self) -> float | None:
        """A score that nothing exceeds, so that all images may have it; None where there is none."""
        return None

    def sources(self) -> tuple[Source, ...]:
        """The weights that it opens."""
        return ()

    def check(self) -> None:
        """Refuse what can be refused before anything is opened.

        Raises:
            ValueError: naming the setting, its value, the reason and the way out.
            MissingExtra, CheckpointError: where a package or a whole file is missing.
        """

    def pair(self) -> Pair | None:
        """Its self-test."""
        return None

    def truncated(self, prompts: Sequence[Prompt]) -> int | None:
        """How many captions are longer than it reads; None where it has no such limit."""
        return None
