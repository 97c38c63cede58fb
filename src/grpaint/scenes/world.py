"""The embedded world as a source of prompts, of captioned images, and of true scenes to measure against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import uniform
from grpaint.scenes.captions import HELD_OUT_KINDS, KINDS, Caption, Kind, draw_caption, parse
from grpaint.scenes.checker import Verdict, check
from grpaint.scenes.render import draw_of, render


def caption_of(prompt: Prompt) -> Caption:
    """A prompt's caption: the one it was made from, or its sentence read by the grammar."""
    known = prompt.metadata.get("caption")
    return known if isinstance(known, Caption) else parse(sentence_of(prompt))


def sentence_of(prompt: Prompt) -> str:
    """What a prompt says in prose: its text, or where that is tags, the ``sentence`` of its metadata."""
    return str(prompt.metadata.get("sentence", prompt.text))


def judge(images: Tensor, prompts: Sequence[Prompt]) -> Verdict:
    """The checker's verdict on images ``[b, 3, 32, 32]`` in [0, 1]."""
    return check(images, [caption_of(prompt) for prompt in prompts])


def _prompt(caption: Caption, reference: Tensor | None = None) -> Prompt:
    return Prompt(str(caption), {"kind": caption.kind, "caption": caption}, reference)


@dataclass(frozen=True)
class SceneData:
    """The ``[data]`` table ``kind = "scenes"``: captions of these ``kinds``, in turn.

    ``references`` adds a drawn scene to every training prompt. ``caption_dropout`` is the share of empty captions in
    :meth:`batch`, which is what classifier-free guidance learns from.
    """

    kinds: tuple[Kind, ...] = KINDS
    references: bool = False
    caption_dropout: float = 0.1

    score: ClassVar[str] = "strict"
    captioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("kinds must name at least one task kind")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}")

    def prepare(self, log: Callable[[str], None]) -> None:
        """Nothing: scenes are drawn when they are asked for."""

    def _captions(
        self, count: int, key: tuple[int | str, ...], kinds: Sequence[Kind], *, held_out: bool
    ) -> list[Caption]:
        first = int(uniform((*key, "kind"), 1).item() * len(kinds))
        return [
            draw_caption(kinds[(first + i) % len(kinds)], draw_of(*key, i), held_out=held_out) for i in range(count)
        ]

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Training prompts of an iteration."""
        key = (seed, iteration, "prompts")
        captions = self._captions(count, key, self.kinds, held_out=False)
        images: Sequence[Tensor | None] = list(render(captions, key)) if self.references else [None] * count
        return [_prompt(caption, image) for caption, image in zip(captions, images, strict=True)]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Prompts with compositions that training never shows; kind single has none and is left out."""
        kinds = [kind for kind in HELD_OUT_KINDS if kind in self.kinds] or list(HELD_OUT_KINDS)
        return [_prompt(c) for c in self._captions(count, (seed, "held-out"), kinds, held_out=True)]

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Training images ``[count, 3, 32, 32]`` in [0, 1] and their captions, some of them empty."""
        key = (seed, iteration, "batch")
        captions = self._captions(count, key, self.kinds, held_out=False)
        empty = uniform((*key, "dropout"), count) < self.caption_dropout
        prompts = [Prompt("") if drop else _prompt(c) for c, drop in zip(captions, empty.tolist(), strict=True)]
        return render(captions, key), prompts

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Held-out captions drawn as they should be."""
        prompts = self.held_out(count, seed)
        images = render([caption_of(prompt) for prompt in prompts], (seed, "true"))
        return CaptionedImages(prompts, images.__getitem__)

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What an evaluation records of each image: ``strict``, ``soft``, ``background``, ``patch_energy``."""
        return vars(judge(images, prompts))

    def category(self, prompt: Prompt) -> str:
        """The task kind under which a prompt is reported."""
        return caption_of(prompt).kind
