"""Rewards of the embedded world: what the checker says, and how clean the background is."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.scenes.checker import background
from grpaint.scenes.world import judge


@dataclass(frozen=True)
class SceneChecker:
    """``strict`` * strict + ``soft`` * soft, in [0, 1] for weights that sum to 1.

    The strict score alone is flat in many groups; the soft one tells their members apart.
    """

    strict: float = 0.5
    soft: float = 0.5

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        verdict = judge(images, prompts)
        return self.strict * verdict.strict + self.soft * verdict.soft


@dataclass(frozen=True)
class SceneCleanliness:
    """Minus the root-mean-square deviation of the background: it sees the woven pattern that the checker does not."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return -background(images.float().cpu())
