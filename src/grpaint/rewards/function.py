"""Turning a user's function of images, captions and metadata into a reward."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpaint.core.policy import Prompt

FunctionWithMetadata = Callable[[Tensor, list[str], list[Mapping[str, object]]], Any]


@dataclass(frozen=True)
class WithMetadata:
    """A reward that calls ``function(images, texts, metadata)`` with each prompt's text and metadata."""

    function: FunctionWithMetadata

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Any:
        return self.function(images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])


def with_metadata(function: Any) -> Any:
    """Wrap a function that takes metadata; any other is returned as it is.

    A function takes metadata if its third positional argument has no default, or is named ``metadata``.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C, or not callable, which is refused later
        return function
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    third = positional[2] if len(positional) > 2 else None
    if third and (third.default is third.empty or third.name == "metadata"):
        return WithMetadata(function)
    return function
