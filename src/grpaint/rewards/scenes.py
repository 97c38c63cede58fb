"""Rewards of the embedded world: the checker, the image-text scorer, likeness to a reference, a clean background."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.scenes.checker import background
from grpaint.scenes.scorer import shipped_scorer
from grpaint.scenes.world import judge, sentence_of


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
class SceneScorer:
    """How well image and caption agree by a small learned scorer, the embedded world's stand-in for CLIP: a cosine.

    ``enough``: an agreement from which on more is no better. What is right still varies a little, and the std of a
    group that is all right would blow that up to advantages of 1.
    """

    enough: float = 1.0

    def __post_init__(self) -> None:
        if not -1 < self.enough <= 1:
            raise ValueError(f"enough must lie in (-1, 1], got {self.enough}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        cosine = shipped_scorer().score(images.float().cpu(), [sentence_of(prompt) for prompt in prompts])
        return cosine.clamp(max=self.enough)


@dataclass(frozen=True)
class SceneDistance:
    """Minus the distance to the prompt's reference image in the scorer's layers, in the manner of LPIPS.

    It says something only about images that began at that reference, so it applies to those rows alone.
    """

    needs_reference = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        pictures = [prompt.reference for prompt in prompts if prompt.reference is not None]
        if len(pictures) < len(prompts):
            bare = next(prompt.text for prompt in prompts if prompt.reference is None)
            raise ValueError(f'the prompt "{bare}" has no reference image; set data.references = true')
        return -shipped_scorer().distance(images.float().cpu(), torch.stack(pictures).float().cpu())


@dataclass(frozen=True)
class SceneCleanliness:
    """Minus the root-mean-square deviation of the background: it sees the woven pattern that the checker does not.

    ``enough``: a deviation below which cleaner is no better. Clean images differ by 3e-4 within a group, and its std
    would blow that up to advantages of 1.
    """

    enough: float = 0.0

    def __post_init__(self) -> None:
        if not self.enough >= 0:
            raise ValueError(f"enough must not be negative, got {self.enough}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return -background(images.float().cpu()).clamp(min=self.enough)
