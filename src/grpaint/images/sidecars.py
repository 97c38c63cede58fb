"""What is written about an image in several places, merged into one table of columns; two captions are an error."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from grpaint.core.errors import ConfigError

Fields = dict[str, Any]

JSON_SUFFIXES, TEXT_SUFFIXES = (".json",), (".txt", ".caption")
NULL_TEXTS = {
    "",
    "none",
    "null",
    "nan",
    "na",
    "n/a",
    "#n/a",
    "<na>",
    "undefined",
}  # what programs write where there is no caption
_TAG_COLUMNS = ("rating", "score", "sentence")  # and those that begin with "tags" or "tag_string"


def is_missing(value: Any) -> bool:
    """Whether a column's value is none: null, not a number, or the empty text or a word that programs write for it."""
    if isinstance(value, str):
        return value.strip().lower() in NULL_TEXTS
    return value is None or (isinstance(value, float) and math.isnan(value))


def merge(sources: Sequence[tuple[str, Mapping[str, Any]]], caption: str, location: str) -> Fields:
    """Merge the columns of ``sources``, each with its name; later ones replace earlier ones, missing values nothing.

    ``location`` is the image that errors name.

    Raises:
        ConfigError: two of them differ in the column ``caption``, or in one of tags.
    """
    merged: Fields = {}
    origins: dict[str, str] = {}
    for source, fields in sources:
        for name, value in fields.items():
            if is_missing(value):
                merged.setdefault(name, value)
                continue
            differs = name in origins and _plain(merged[name]) != _plain(value)
            if differs and (name in (caption, *_TAG_COLUMNS) or name.startswith(("tags", "tag_string"))):
                what = "another caption" if name == caption else f'another "{name}"'
                raise ConfigError(f"{location}: {source} has {what} than {origins[name]}. Remove one of them.")
            merged[name], origins[name] = value, source
    return merged


def _plain(value: Any) -> Any:
    """A value for comparison: a text without the kind and number of its line ends and blanks at its ends; 1.0 is 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        return str(value)
    return "\n".join(value.strip().splitlines()) if isinstance(value, str) else value


def alike(name: str) -> str:
    """The spelling in common of names that differ in capitals or, as those of macOS, in how accents are spelt."""
    return unicodedata.normalize("NFC", name.lower())


def sidecar_names(stem: str, name: str, suffixes: Sequence[str]) -> list[str]:
    """List the names that a sidecar of the image ``name`` may have: a.txt or a.png.txt for a.png, as gallery-dl."""
    return [base + suffix for suffix in suffixes for base in (stem, name)]
