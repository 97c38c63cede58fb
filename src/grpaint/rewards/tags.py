"""A reward for models that are asked in tags: how many of a prompt's tags a tagger finds in the image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grpaint.core.importing import import_target
from grpaint.core.policy import Prompt
from grpaint.images.tags import underscores_to_spaces

Tagger = Callable[[Tensor], Sequence[Mapping[str, float]]]


def tags_of(prompt: Prompt) -> list[str]:
    """A prompt's tags: those of its metadata, as data with tags gives them, else its text split at commas."""
    known = prompt.metadata.get("tags")
    return [str(tag) for tag in known] if isinstance(known, list) else prompt.text.split(",")


def _plain(tag: str) -> str:
    return underscores_to_spaces(tag.strip()).lower()


@dataclass(frozen=True)
class TagRecall:
    """The share, in [0, 1], of a prompt's tags that a tagger finds, each counted by its weight.

    ``tagger``: your own, as "file.py:name" or "module:name": images ``[b, 3, h, w]`` in [0, 1] to ``b`` tables of tags
    and scores. A tag is found at a score of ``threshold``; with ``soft`` its score counts instead. ``weights`` of tags
    (1 unless said; 0 leaves one out). Underscores and case make no difference.
    """

    tagger: str
    threshold: float = 0.35
    soft: bool = False
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if ":" not in self.tagger:
            raise ValueError(f'tagger = "{self.tagger}": name a function as file.py:name or module:name')
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        if any(weight < 0 for weight in (self.weights or {}).values()):
            raise ValueError("weights must not be negative")
        try:
            callable_ = callable(self._tagger)
        except Exception as error:  # noqa: BLE001 - reason: a user's own file may raise anything
            raise ValueError(f'tagger = "{self.tagger}": cannot be imported: {type(error).__name__}: {error}') from None
        if not callable_:
            raise ValueError(f'tagger = "{self.tagger}": is no function')

    @cached_property
    def _tagger(self) -> Tagger:
        return import_target(self.tagger)

    @cached_property
    def _weights(self) -> dict[str, float]:
        return {_plain(tag): weight for tag, weight in (self.weights or {}).items()}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        found = self._tagger(images)
        if len(found) != len(prompts):
            raise ValueError(f"the tagger gave {len(found)} tables for {len(prompts)} images")
        return torch.tensor([self._recall(*pair) for pair in zip(found, prompts, strict=True)])

    def _recall(self, found: Mapping[str, float], prompt: Prompt) -> float:
        scores = {_plain(tag): score for tag, score in found.items()}
        asked = {tag: self._weights.get(tag, 1.0) for tag in map(_plain, tags_of(prompt)) if tag}
        whole = sum(asked.values())
        if not whole:
            raise ValueError(f'the prompt "{prompt.text}" asks for no tag that counts')
        got = {tag: scores.get(tag, 0.0) for tag in asked}
        return sum(w * (got[tag] if self.soft else got[tag] >= self.threshold) for tag, w in asked.items()) / whole
