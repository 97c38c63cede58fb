"""Rewards of the embedded world: checker, image-text scorer, likeness to a reference, clean background."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, RewardBase
from grpaint.rewards.references import references
from grpaint.rewards.self_test_images import noise
from grpaint.scenes.captions import parse
from grpaint.scenes.checker import background
from grpaint.scenes.render import render
from grpaint.scenes.scorer import shipped_scorer
from grpaint.scenes.shapes import SIDE
from grpaint.scenes.world import judge, sentence_of


def _scenes(images: Tensor) -> Tensor:
    """Images of the embedded world in fp32 on the CPU.

    Raises:
        ValueError: if they have another size than its scenes.
    """
    if tuple(images.shape[2:]) != (SIDE, SIDE):
        raise ValueError(f"scenes are {SIDE} x {SIDE} pixels, these are {images.shape[2]} x {images.shape[3]}")
    return images.float().cpu()


def _render_scene(text: str) -> Tensor:
    """A correct drawing ``[3, side, side]`` of a caption; the same at every call."""
    return render([parse(text)], ("self-test",))[0]


def _caption_pair(low: float, high: float) -> Pair:
    """A self-test: the drawing of a caption must score higher than that of another caption."""
    caption = "a red circle above a blue square"
    return Pair(_render_scene(caption), _render_scene("a green cross"), Prompt(caption), low, high)


def _clean_and_grainy() -> tuple[Tensor, Tensor]:
    scene = _render_scene("a red circle")
    return scene, scene + 0.5 * (noise(scene.shape[-1]) - 0.5)


class _SceneReward(RewardBase):
    """A reward of scenes, which have one size."""

    image_size = (SIDE, SIDE)


@dataclass(frozen=True)
class SceneChecker(_SceneReward):
    """``strict`` * strict + ``soft`` * soft, in [0, 1] for weights that sum to 1.

    The strict score alone is the same for all members of many groups; the soft score differs between them.
    """

    strict: float = 0.5
    soft: float = 0.5

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        verdict = judge(_scenes(images), prompts)
        return self.strict * verdict.strict + self.soft * verdict.soft

    @property
    def best(self) -> float:
        return self.strict + self.soft

    def pair(self) -> Pair:
        return _caption_pair(0, max(1.0, self.best))


@dataclass(frozen=True)
class SceneScorer(_SceneReward):
    """The cosine of image and caption by a small learned scorer, the embedded world's stand-in for CLIP.

    ``enough``: higher cosines are clamped to it. Correct images still differ a little, and dividing by the std of an
    all-correct group would turn these differences into advantages of about 1.
    """

    enough: float = 1.0

    def __post_init__(self) -> None:
        if not -1 < self.enough <= 1:
            raise ValueError(f"enough must lie in (-1, 1], got {self.enough}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        cosine = shipped_scorer().score(_scenes(images), [sentence_of(prompt) for prompt in prompts])
        return cosine.clamp(max=self.enough)

    @property
    def best(self) -> float:
        return self.enough

    def pair(self) -> Pair:
        return _caption_pair(-1, 1)


@dataclass(frozen=True)
class SceneDistance(_SceneReward):
    """Minus the distance to the prompt's reference image in the scorer's layers, in the manner of LPIPS.

    It is meaningful only for images whose sampling began at that reference, so it applies to those rows alone.
    """

    needs_reference = True
    needs_caption = False

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return -shipped_scorer().distance(_scenes(images), references(prompts).cpu())

    @property
    def best(self) -> float:
        return 0.0

    def pair(self) -> Pair:
        scene, grainy = _clean_and_grainy()
        return Pair(scene, grainy, Prompt("a red circle", reference=scene), -4, 1e-6)


@dataclass(frozen=True)
class SceneCleanliness(_SceneReward):
    """Minus the root-mean-square deviation of the background: it sees the woven pattern that the checker ignores.

    ``enough``: smaller deviations are clamped to it. Clean images differ by 3e-4 within a group, and dividing by its
    std would turn these differences into advantages of about 1.
    """

    needs_caption = False

    enough: float = 0.0

    def __post_init__(self) -> None:
        if not self.enough >= 0:
            raise ValueError(f"enough must not be negative, got {self.enough}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return -background(_scenes(images)).clamp(min=self.enough)

    @property
    def best(self) -> float:
        return -self.enough

    def pair(self) -> Pair:
        return Pair(*_clean_and_grainy(), Prompt("a red circle"), -1, 0)
