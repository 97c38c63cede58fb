"""Booru tags of an image as its sidecar or caption spells them: by category, with rating and score."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.core.text import one_line
from grpaint.images.sidecars import is_missing

SIDECAR_CATEGORIES = ("artist", "copyright", "character", "general", "meta")
_CATEGORY_NAMES = {name: name for name in SIDECAR_CATEGORIES} | {
    **dict.fromkeys(
        ("species", "genre", "style", "fashion", "anatomy", "pose", "activity", "role", "setting"), "general"
    ),
    **dict.fromkeys(("flora", "fauna", "entity", "object", "substance"), "general"),
    **dict.fromkeys(("circle", "studio"), "artist"),
    **dict.fromkeys(("metadata", "medium", "lore", "contributor", "language", "automatic", "faults"), "meta"),
}  # of other sites too
RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit", "safe": "general"}
UNCLEAR_RATING = "s"  # "sensitive" on danbooru and "safe" on all others
_DANBOORUS = {"danbooru", "aibooru", "atfbooru", "booruvar"}  # as gallery-dl names sites
_OTHER_SITES = {
    *("e621", "e926", "e6ai", "gelbooru", "hypnohub", "idolcomplex", "konachan", "lolibooru", "moebooru", "realbooru"),
    *("rule34", "rule34us", "safebooru", "sakugabooru", "sankaku", "tbib", "xbooru", "yande.re", "yandere", "3dbooru"),
}
EMOTICONS = {
    "^_^",
    ">_<",
    "o_o",
    "0_0",
    "o_0",
    "0_o",
    "O_O",
    "+_+",
    "+_-",
    "._.",
    ",_,",
    "=_=",
    "-_-",
    "u_u",
    "x_x",
    "X_X",
    "@_@",
    ";_;",
    "t_t",
    "T_T",
    "n_n",
    "3_3",
    "6_9",
    ">_o",
    ">_@",
    "<o>_<o>",
    "(o)_(o)",
    "<|>_<|>",
    "|_|",
    "||_||",
    "d_b",
    "q_p",
    "o_-",
    "-_o",
}
# texts of tags are cut at commas, also full ones, tabs and line ends, but ",_," is a tag
_TAG = re.compile(r",_,(?=[\s,]|$)|[^,\uff0c\u3001\t\r\n]+")
_KEPT = "|||"  # ends the tags that kohya's trainers keep in their places
_LIST = re.compile(r"\s*\[\s*(['\"].*['\"])\s*\]\s*", re.DOTALL)  # a list of texts that a program wrote as a text


@dataclass(frozen=True)
class ImageTags:
    """The tags of one image by category, as its sidecar spells them, with its rating and score if it has them.

    ``rating``: a full word, one of the values of ``RATINGS``, or ``UNCLEAR_RATING``, or what else the sidecar has.
    """

    by_category: Mapping[str, tuple[str, ...]]
    rating: str | None = None
    score: float | None = None


def _at_separators(text: str) -> list[str]:
    """Cut a text of tags at commas, tabs and line ends, or else at semicolons or bars; empty if there are none."""
    text = text.replace(_KEPT, ",")
    if listed := _LIST.fullmatch(text):
        return [item.strip().strip("'\"") for item in listed[1].split(",")]
    plain = " ".join(word for word in re.split(r"[ \u3000]+", text.strip()) if word not in EMOTICONS)
    if re.search(r"[,\uff0c\u3001\t\r\n]", plain):
        return _TAG.findall(text)
    if re.search(r"[;\uff1b](?:\s|$)", plain):
        return re.split(r"[;\uff1b](?:\s+|$)", text)
    return text.split("|") if "|" in plain else []


def _parse_tags(value: Any, location: str) -> tuple[str, ...]:
    """Split a text, at blanks if it has no other separators, or take a list of texts; each tag once, in order."""
    if isinstance(value, str):
        value = _at_separators(value) or value.split()
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise ConfigError(f"{location}: tags must be a text or a list of texts, not {value!r:.60}.")
    return _unique([tag for item in value for tag in _at_separators(item) or [item]])


def _caption_tags(text: Any, location: str) -> tuple[str, ...]:
    """Split a caption as :func:`_parse_tags`, but at blanks only if a word has the underscore of a booru's tags."""
    if isinstance(text, str) and not any("_" in word for word in text.split() if word not in EMOTICONS):
        text = [text]
    return _parse_tags(text, location)


def _unique(tags: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))


def read_tags(fields: Mapping[str, Any], caption: str, location: str) -> ImageTags:
    """Read an image's tags, rating and score from its metadata fields.

    Tags by category are read as danbooru (``tag_string_general`` ..), gallery-dl (``tags_general`` ..) or e621 (a table
    ``tags``) write them. If there are none, the tags in ``tag_string`` or ``tags``, or else those of column
    ``caption``, all count as general. ``location`` names the image in errors.

    Raises:
        ConfigError: if the tags or the score have a wrong type or value.
    """
    if isinstance(fields.get("tags"), Mapping) and all(isinstance(v, int | float) for v in fields["tags"].values()):
        fields = {**fields, "tags": list(fields["tags"])}  # of a tagger: each with its confidence
    if isinstance(fields.get("tags"), Mapping):
        fields = {**fields, "tags": None} | {f"tags_{name}": value for name, value in fields["tags"].items()}
    tags: dict[str, tuple[str, ...]] = {}
    for prefix in ("tags_", "tag_string_"):
        by_category: dict[str, tuple[str, ...]] = {}
        for name, category in _CATEGORY_NAMES.items():
            if not is_missing(fields.get(prefix + name)):
                by_category[category] = by_category.get(category, ()) + _parse_tags(fields[prefix + name], location)
        tags |= {category: _unique([*names]) for category, names in by_category.items() if names}
    uncategorised = next((fields[name] for name in ("tag_string", "tags") if not is_missing(fields.get(name))), None)
    if not tags and uncategorised:
        tags["general"] = _parse_tags(uncategorised, location)
    elif not tags and not is_missing(fields.get(caption)):
        tags["general"] = _caption_tags(fields[caption], location)
    return ImageTags(tags, _parse_rating(fields), _parse_score(fields.get("score"), location))


def _parse_rating(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("rating")
    if is_missing(value):
        return None
    word = value.strip().lower().removeprefix("rating:") if isinstance(value, str) else ""
    rating = RATINGS.get(word, word)
    if rating not in RATINGS.values():
        return one_line(str(value), 60)
    site = str(fields.get("category") or "").lower()
    if word != UNCLEAR_RATING or site in _DANBOORUS or (not site and any(n.startswith("tag_string") for n in fields)):
        return rating
    return RATINGS["safe"] if site in _OTHER_SITES else UNCLEAR_RATING


def _parse_score(value: Any, location: str) -> float | None:
    if isinstance(value, Mapping):  # e621: {up, down, total}
        value = value.get("total")
    if is_missing(value):
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ConfigError(f"{location}: score = {value!r:.60}: must be a number.")
    return value if isinstance(value, int | float) else score
