"""The length of captions in a model's own tokens, without opening its weights."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from grpaint.backends.diffusers import Diffusers
from grpaint.core.errors import MissingExtra
from grpaint.vision.pretrained import open_tokenizer

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """The number of words between spaces, which is also the number of the built-in model's tokens."""
    return len(text.split())


def token_counts(model: object) -> dict[str, Count]:
    """Functions that count a caption's tokens without begin and end marks, by the name of the tokenizer.

    For a model that is not in a local folder, one function that counts words.
    """
    folder = Path(model.config or model.base) if isinstance(model, Diffusers) else None
    tokenizer_folders = sorted(folder.glob("tokenizer*")) if folder else []
    return {place.name: _counter(place) for place in tokenizer_folders} or {"words": count_words}


def _counter(folder: Path) -> Count:
    if not find_spec("transformers"):
        raise MissingExtra("counting a model's tokens", "diffusers")
    tokenizer = open_tokenizer(folder)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
