"""Booru tags: what the sidecars of such sites say, and the caption that becomes of it."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from grpaint.core.errors import ConfigError
from grpaint.images.sources import read_text

Category = Literal["quality", "rating", "artist", "copyright", "character", "general", "meta"]

SAID = ("artist", "copyright", "character", "general", "meta")  # the others are made of rating and score
RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit", "safe": "general"}
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


def spaced(tag: str) -> str:
    """A tag with spaces for its underscores, which in an emoticon belong there."""
    return tag if tag in EMOTICONS else tag.replace("_", " ")


@dataclass(frozen=True)
class Tagged:
    """What one image's sidecar says: its tags by category as written, its rating (in full) and score if any."""

    tags: Mapping[str, tuple[str, ...]]
    rating: str | None = None
    score: float | None = None


def _split(value: Any, where: str, comma: bool = False) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",") if comma else value.split()
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise ConfigError(f"{where}: tags must be a text or a list of texts, not {value!r:.60}.")
    return tuple(dict.fromkeys(tag.strip() for tag in value if tag.strip()))


def read_tags(fields: Mapping[str, Any], caption: str, where: str) -> Tagged:
    """Tags as danbooru (``tag_string_general`` ..) or gallery-dl (``tags_general`` ..) write them, else all as general.

    Without categories it is ``tag_string`` or ``tags``, else the ``caption`` column split at commas.

    Raises:
        ConfigError: where a tag, the rating or the score is of the wrong kind.
    """
    tags: dict[str, tuple[str, ...]] = {}
    for prefix in ("tag_string_", "tags_"):
        for category in SAID:
            if not tags.get(category) and fields.get(prefix + category):
                tags[category] = _split(fields[prefix + category], where)
    whole = next((fields[name] for name in ("tag_string", "tags") if fields.get(name)), None)
    if not tags and whole:
        tags["general"] = _split(whole, where)
    elif not tags and fields.get(caption):
        tags["general"] = _split(fields[caption], where, comma=True)
    return Tagged(tags, _rating(fields.get("rating"), where), _score(fields.get("score"), where))


def _rating(value: Any, where: str) -> str | None:
    if value is None:
        return None
    full = RATINGS.get(value, value)
    if full not in RATINGS.values():
        raise ConfigError(f'{where}: rating = "{value}": no rating. There are: {", ".join(sorted(RATINGS))}.')
    return str(full)


def _score(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: score = {value!r:.60}: must be a number.")


def read_implications(file: Path) -> dict[str, frozenset[str]]:
    """Lines ``a -> b``: every tag with all that it implies, directly or not.

    Raises:
        ConfigError: with the line that is none, or that closes a circle.
    """
    direct: dict[str, set[str]] = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip() or line.startswith("# "):
            continue
        one, arrow, other = (part.strip() for part in line.partition("->"))
        if not (one and arrow and other):
            raise ConfigError(f'{file}:{number}: "{line.strip()}": write an implication as "a -> b".')
        if one == other or one in _closure(other, direct):
            raise ConfigError(f"{file}:{number}: {other} implies {one} already, and a circle says nothing.")
        direct.setdefault(one, set()).add(other)
    return {tag: frozenset(_closure(tag, direct)) for tag in direct}


def _closure(tag: str, direct: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [tag]
    while left:
        new = direct.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


@dataclass(frozen=True)
class Tags:
    """How tags become a caption: ``data.tags = { .. }``.

    - ``categories`` in their order; what is not named is left out. "rating" and "quality" are made: the rating's name,
      and the tag of ``quality`` with the highest threshold that the score reaches, where a threshold is the share of
      training images that score lower (``quality_by`` "quantile") or a score.
    - ``underscores`` become spaces except in emoticons. ``exclude``: tags, as written in the sidecar, to leave out.
    - ``keep_first``: so many of the caption's first tags are neither shuffled nor dropped. ``shuffle`` the rest within
      each category or all; ``dropout``: the chance of each to be left out; one tag always stays. Held-out captions are
      neither shuffled nor dropped.
    - ``ratings``, ``least_score``: images to keep. ``implications``: a file of lines "a -> b"; b is removed where a
      stands, or added.
    """

    categories: tuple[Category, ...] = ("artist", "copyright", "character", "general", "meta")
    separator: str = ", "
    underscores: Literal["replace", "keep"] = "replace"
    exclude: tuple[str, ...] = ()
    keep_first: int = 0
    shuffle: Literal["none", "within", "all"] = "none"
    dropout: float = 0.0
    quality: dict[str, float] = field(default_factory=dict)
    quality_by: Literal["quantile", "score"] = "quantile"
    ratings: tuple[Literal["general", "sensitive", "questionable", "explicit"], ...] = ()
    least_score: float | None = None
    implications: str = ""
    implied: Literal["remove", "add"] = "remove"

    def __post_init__(self) -> None:
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"categories must name each category once: {', '.join(get_args(Category))}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.keep_first < 0:
            raise ValueError(f"keep_first must not be negative, got {self.keep_first}")
        if ("quality" in self.categories) != bool(self.quality):
            raise ValueError('quality = { TAG = threshold } and "quality" among the categories go together')
        if self.quality_by == "quantile" and any(not 0 <= at < 1 for at in self.quality.values()):
            raise ValueError("quality must lie in [0, 1) by quantile; for scores set quality_by")
        if self.implications and not Path(self.implications).is_file():
            raise ValueError(f'implications = "{self.implications}": no such file')

    @cached_property
    def _implied(self) -> dict[str, frozenset[str]]:
        return read_implications(Path(self.implications)) if self.implications else {}

    def wants(self, tagged: Tagged, where: str) -> str | None:
        """Why an image is left out, or None.

        Raises:
            ConfigError: where it has no rating or score to go by.
        """
        needs = [("rating", self.ratings or "rating" in self.categories), ("score", self.quality)]
        needs += [("score", self.least_score is not None)]
        for name, needed in needs:
            if needed and getattr(tagged, name) is None:
                raise ConfigError(f"{where}: has no {name}, which data.tags goes by; add it, or unset what needs it.")
        if self.ratings and tagged.rating not in self.ratings:
            return f"rated {tagged.rating}"
        low = self.least_score is not None and tagged.score is not None and tagged.score < self.least_score
        return f"scored below {self.least_score:g}" if low else None

    def thresholds(self, scores: Sequence[float]) -> tuple[tuple[float, str], ...]:
        """Least scores and their quality tags, the highest first; ``scores`` are those of the training images."""
        ordered = sorted(scores)

        def least(at: float) -> float:
            if self.quality_by == "score":
                return at
            return ordered[int(at * len(ordered))] if at and ordered else -math.inf

        found = ((least(at), tag) for tag, at in self.quality.items())
        return tuple(sorted(found, reverse=True))

    def by_category(self, tagged: Tagged, thresholds: Sequence[tuple[float, str]]) -> dict[str, list[str]]:
        """The tags of an image as they will stand in its caption, by category in order."""
        made: dict[str, tuple[str, ...]] = {"rating": (tagged.rating,) if tagged.rating else ()}
        made["quality"] = tuple(tag for at, tag in thresholds if tagged.score is not None and tagged.score >= at)[:1]
        every = {tag for tags in tagged.tags.values() for tag in tags}
        implied = set().union(*(self._implied.get(tag, ()) for tag in every))
        out: dict[str, list[str]] = {}
        for category in self.categories:
            tags = [tag for tag in made.get(category, tagged.tags.get(category, ())) if tag not in self.exclude]
            if self.implied == "remove" and category in SAID:
                tags = [tag for tag in tags if tag not in implied]
            elif category == "general":
                tags += sorted(implied - every - set(self.exclude))
            out[category] = [spaced(tag) if self.underscores == "replace" else tag for tag in tags]
        return out

    def caption(self, tags: Mapping[str, Sequence[str]], draw: random.Random | None) -> str:
        """The caption of tags by category; shuffled and thinned where there is something to ``draw`` from."""
        rows = [(tag, place) for place, part in enumerate(tags.values()) for tag in part]
        first, rest = rows[: self.keep_first], rows[self.keep_first :]
        if draw and self.shuffle != "none":
            order = {row: (row[1] if self.shuffle == "within" else 0, draw.random()) for row in rest}
            rest.sort(key=order.__getitem__)
        if draw and self.dropout:
            kept = [row for row in rest if draw.random() >= self.dropout]
            rest = kept if kept or first else rest[:1]
        return self.separator.join(tag for tag, _ in first + rest)


_COUNTED = {"girl": "girl", "boy": "boy", "other": "person"}
_NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6+": "many"}
_PLURAL = {"girl": "girls", "boy": "boys", "person": "people"}


def sentence(tags: Mapping[str, Sequence[str]]) -> str:
    """Tags by category as prose, for scorers that read sentences: who, of what, with what, by whom.

    A rule and no more: "one girl, hatsune miku from vocaloid, with long hair and a smile"; quality, rating and meta
    tags are no part of what is seen.
    """
    general = [spaced(tag) for tag in tags.get("general", ())]
    counted = [tag for tag in general if _people(tag)]
    seen = [tag for tag in general if tag not in counted and tag not in ("solo", "duo")]
    who = _listed([_people(tag) for tag in counted])
    names = _listed([spaced(tag) for tag in tags.get("character", ())])
    world = _listed([spaced(tag) for tag in tags.get("copyright", ())])
    by = _listed([spaced(tag) for tag in tags.get("artist", ())])
    about = " from ".join(part for part in (names, world) if part)
    parts = [part for part in (who, about) if part]
    if seen:
        parts.append(f"with {_listed(seen)}" if parts else _listed(seen))
    if by:
        parts.append(f"drawn by {by}")
    return ", ".join(parts)


def _people(tag: str) -> str:
    """``2girls`` as "two girls"; empty where a tag counts nobody."""
    for noun, person in _COUNTED.items():
        number = tag.removesuffix("s").removesuffix(noun)
        if number in _NUMBERS and tag.removesuffix("s") == number + noun:
            return f"{_NUMBERS[number]} {person if number == '1' else _PLURAL[person]}"
    return ""


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
