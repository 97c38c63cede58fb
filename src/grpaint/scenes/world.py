"""The embedded world as data: prompts, captioned images, and true scenes to compare with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import uniform
from grpaint.scenes.captions import HELD_OUT_KINDS, KINDS, Caption, Kind, draw_caption, parse
from grpaint.scenes.checker import Verdict, check
from grpaint.scenes.render import keyed_random, render
from grpaint.scenes.shapes import SIDE


def caption_of(prompt: Prompt) -> Caption:
    """Return a prompt's caption: the one in its metadata, or its sentence parsed by the grammar.

    Raises:
        ConfigError: if the sentence is not one of the grammar.
    """
    caption = prompt.metadata.get("caption")
    return caption if isinstance(caption, Caption) else parse(sentence_of(prompt))


def sentence_of(prompt: Prompt) -> str:
    """Return a prompt in prose: the ``sentence`` in its metadata (its text may be tags), or its text."""
    return str(prompt.metadata.get("sentence", prompt.text))


def judge(images: Tensor, prompts: Sequence[Prompt]) -> Verdict:
    """Check images ``[b, 3, 32, 32]`` in [0, 1] against the captions of their prompts."""
    return check(images, [caption_of(prompt) for prompt in prompts])


def _prompt(caption: Caption, reference: Tensor | None = None) -> Prompt:
    return Prompt(str(caption), {"kind": caption.kind, "caption": caption}, reference)


@dataclass(frozen=True)
class SceneData:
    """Drawn scenes as data: the ``[data]`` table with ``kind = "scenes"``.

    - ``kinds``: the task kinds of the captions, used in turn.
    - ``references``: give every training prompt a drawing of its scene as the reference.
    - ``caption_dropout``: the share of empty captions in :meth:`batch`, from which classifier-free guidance learns.
    """

    kinds: tuple[Kind, ...] = KINDS
    references: bool = False
    caption_dropout: float = 0.1

    score: ClassVar[str] = "strict"
    captioned: ClassVar[bool] = True
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((SIDE, SIDE),)
    image_size: ClassVar[tuple[int, int]] = (SIDE, SIDE)

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("kinds must name at least one task kind")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}")

    def prepare(self, log: Callable[[str], None]) -> None:
        """Do nothing: scenes are drawn when they are needed."""

    def _captions(
        self, count: int, key: tuple[int | str, ...], kinds: Sequence[Kind], *, held_out: bool
    ) -> list[Caption]:
        first = int(uniform((*key, "kind"), 1).item() * len(kinds))
        return [
            draw_caption(kinds[(first + i) % len(kinds)], keyed_random(*key, i), held_out=held_out)
            for i in range(count)
        ]

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Return the training prompts of an iteration."""
        key = (seed, iteration, "prompts")
        captions = self._captions(count, key, self.kinds, held_out=False)
        images: Sequence[Tensor | None] = list(render(captions, key)) if self.references else [None] * count
        return [_prompt(caption, image) for caption, image in zip(captions, images, strict=True)]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Return prompts with compositions that training never shows, of all kinds but "single", which has none."""
        kinds = [kind for kind in HELD_OUT_KINDS if kind in self.kinds] or list(HELD_OUT_KINDS)
        return [_prompt(c) for c in self._captions(count, (seed, "held-out"), kinds, held_out=True)]

    def batch(self, count: int, iteration: int, seed: int) -> CaptionedImages:
        """Return ``count`` training images of 32 pixels and their prompts, a share of them empty."""
        key = (seed, iteration, "batch")
        captions = self._captions(count, key, self.kinds, held_out=False)
        empty = uniform((*key, "dropout"), count) < self.caption_dropout
        prompts = [Prompt("") if is_empty else _prompt(c) for c, is_empty in zip(captions, empty.tolist(), strict=True)]
        return CaptionedImages(prompts, lambda rows: render(captions[rows], key, first=rows.start or 0))

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Return held-out prompts with true drawings of their scenes."""
        prompts = self.held_out(count, seed)
        images = render([caption_of(prompt) for prompt in prompts], (seed, "true"))
        return CaptionedImages(prompts, images.__getitem__)

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the checker's measures of each image: ``strict``, ``soft``, ``background``, ``patch_energy``."""
        return vars(judge(images, prompts))

    def category(self, prompt: Prompt) -> str:
        """Return the task kind, by which evaluations are split."""
        return caption_of(prompt).kind
