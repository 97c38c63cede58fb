"""A reward for models prompted by tags: the share of a prompt's tags that a tagger finds in the image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grpaint.core.importing import import_target
from grpaint.core.policy import Prompt
from grpaint.core.user_code import user_code
from grpaint.images.tags import underscores_to_spaces

Tagger = Callable[[Tensor], Sequence[Mapping[str, float]]]


def tags_of(prompt: Prompt) -> list[str]:
    """A prompt's tags: the list ``tags`` of its metadata, or else its text split at commas."""
    tags = prompt.metadata.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else prompt.text.split(",")


def _normalised(tag: str) -> str:
    return underscores_to_spaces(tag.strip()).lower()


@dataclass(frozen=True)
class TagRecall:
    """The weighted share, in [0, 1], of a prompt's tags that a tagger finds.

    ``tagger`` is a function of your own, as "file.py:name" or "module:name", from images ``[b, 3, h, w]`` in [0, 1] to
    ``b`` tables of tags and scores. A tag counts as found from a score of ``threshold`` on; with ``soft`` its score
    counts instead. ``weights`` gives tags another weight than 1; 0 leaves a tag out. Underscores and case make no
    difference.
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
        with user_code(f'tagger = "{self.tagger}": cannot be imported: it', ValueError):
            is_function = callable(self._tagger)
        if not is_function:
            raise ValueError(f'tagger = "{self.tagger}": is not a function')

    @cached_property
    def _tagger(self) -> Tagger:
        return import_target(self.tagger, "tagger")

    @cached_property
    def _weights(self) -> dict[str, float]:
        return {_normalised(tag): weight for tag, weight in (self.weights or {}).items()}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        tables = self._tagger(images)
        if len(tables) != len(prompts):
            raise ValueError(f"the tagger returned {len(tables)} tables for {len(prompts)} images")
        return torch.tensor([self._recall(*pair) for pair in zip(tables, prompts, strict=True)])

    def _recall(self, table: Mapping[str, float], prompt: Prompt) -> float:
        scores = {_normalised(tag): score for tag, score in table.items()}
        weights = {tag: self._weights.get(tag, 1.0) for tag in map(_normalised, tags_of(prompt)) if tag}
        total = sum(weights.values())
        if not total:
            raise ValueError(f'the prompt "{prompt.text}" asks for no tag that counts')
        recalled = 0.0
        for tag, weight in weights.items():
            score = scores.get(tag, 0.0)
            recalled += weight * (score if self.soft else score >= self.threshold)
        return recalled / total
