"""How long a caption is in a model's own tokens, without opening its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpaint.backends.diffusers import Diffusers
from grpaint.core.errors import MissingExtra

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """Words between spaces; the built-in model's tokens too."""
    return len(text.split())


def token_counts(model: object) -> dict[str, Count]:
    """Counters by tokenizer, begin and end marks left out; of words where the model is in no local folder."""
    folder = Path(model.base) if isinstance(model, Diffusers) else None
    places = sorted(folder.glob("tokenizer*")) if folder else []
    return {place.name: _counter(place) for place in places} or {"words": count_words}


def _counter(place: Path) -> Count:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("counting a model's tokens", "diffusers") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
