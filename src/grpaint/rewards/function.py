"""A user's function of images, captions and metadata, as a reward."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpaint.core.policy import Prompt

OfThree = Callable[[Tensor, list[str], list[Mapping[str, object]]], Any]


@dataclass(frozen=True)
class WithMetadata:
    """Calls ``f(images, texts, metadata)``: plain captions, and what is known about each."""

    function: OfThree

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Any:
        return self.function(images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])


def with_metadata(function: Any) -> Any:
    """``function`` as a reward: one whose third argument must be given, or is called metadata, gets it."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # nothing callable, which is refused elsewhere; or written in C
        return function
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    third = places[2] if len(places) > 2 else None
    if third and (third.default is third.empty or third.name == "metadata"):
        return WithMetadata(function)
    return function
