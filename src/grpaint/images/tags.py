"""Booru tags turned into captions or prose; ``booru.py`` reads them."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from grpaint.core.errors import ConfigError
from grpaint.images.booru import EMOTICONS, RATINGS, SIDECAR_CATEGORIES, UNCLEAR_RATING, ImageTags
from grpaint.storage.reading import read_text, text_lines

Category = Literal["quality", "rating", "artist", "copyright", "character", "general", "meta"]


def underscores_to_spaces(tag: str) -> str:
    """Replace a tag's underscores by spaces, unless the tag is an emoticon."""
    return tag if tag in EMOTICONS else tag.replace("_", " ")


def read_implications(file: Path) -> dict[str, frozenset[str]]:
    """Read a file of lines ``a -> b``; returns all tags that each tag implies, directly or through others.

    Blank lines and lines that begin with "# " are skipped.

    Raises:
        ConfigError: if a line is not an implication or closes a circle, with its number.
    """
    direct: dict[str, set[str]] = {}
    for number, line in enumerate(text_lines(read_text(file)), 1):
        if not line.strip() or line.startswith("# "):
            continue
        tag, arrow, implied = (part.strip() for part in line.partition("->"))
        if not (tag and arrow and implied):
            raise ConfigError(f'{file}:{number}: "{line.strip()}": write an implication as "a -> b".')
        if tag == implied or tag in _closure(implied, direct):
            raise ConfigError(f"{file}:{number}: {implied} implies {tag} already; remove one line of the circle.")
        direct.setdefault(tag, set()).add(implied)
    return {tag: frozenset(_closure(tag, direct)) for tag in direct}


def _closure(tag: str, direct: Mapping[str, set[str]]) -> set[str]:
    """Collect all tags that ``tag`` implies, directly or through others."""
    implied: set[str] = set()
    remaining = [tag]
    while remaining:
        new = direct.get(remaining.pop(), set()) - implied
        implied |= new
        remaining += new
    return implied


@dataclass(frozen=True)
class TagSettings:
    """Settings that turn tags into a caption: the table ``data.tags = { .. }``.

    - ``categories``: the categories in the caption, in their order; others are left out. The sidecar has no tags for
      two of them: "rating" becomes the rating's name, and "quality" the tag in ``quality`` with the highest threshold
      that the image's score reaches.
    - ``quality``: thresholds by tag; with ``quality_by`` "quantile" the share of training images that score lower, in
      [0, 1), with "score" a score.
    - ``separator``: the text between tags. ``underscores``: "replace" them by spaces, except in emoticons, or "keep".
    - ``exclude``: tags to leave out, spelled as in the sidecar.
    - ``shuffle`` the tags "within" each category or "all" of them; ``dropout``: the chance of a tag to be left out. The
      first ``keep_first`` tags are neither shuffled nor dropped, and one tag always stays. Held-out captions are
      neither shuffled nor dropped.
    - ``ratings``, ``least_score``: use only images with one of these ratings, and with at least this score.
    - ``implications``: a file of lines "a -> b"; in an image with tag a, tag b is removed or added, by ``implied``.
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

    def exclusion_reason(self, tags: ImageTags, location: str) -> str | None:
        """Return why an image is left out by its rating or score, or None if it is used.

        Raises:
            ConfigError: if a setting needs a rating or score that the image does not have.
        """
        needs = [("rating", self.ratings or "rating" in self.categories), ("score", self.quality)]
        needs += [("score", self.least_score is not None)]
        for name, is_needed in needs:
            if is_needed and getattr(tags, name) is None:
                raise ConfigError(f"{location}: has no {name}, which data.tags needs; add it, or unset what needs it.")
        if tags.rating == UNCLEAR_RATING and needs[0][1]:
            raise ConfigError(
                f'{location}: rating = "s" is "sensitive" on danbooru and "safe" elsewhere; write the word, or the '
                'site as gallery-dl does: "category": "danbooru".'
            )
        if tags.rating and tags.rating not in RATINGS.values() and needs[0][1]:
            names = ", ".join(sorted({*RATINGS, *RATINGS.values()}))
            raise ConfigError(
                f'{location}: rating = "{tags.rating}": no rating. There are: {names}. Write one of them.'
            )
        if self.ratings and tags.rating not in self.ratings:
            return f"rated {tags.rating}"
        is_low = self.least_score is not None and tags.score is not None and tags.score < self.least_score
        return f"scored below {self.least_score:g}" if is_low else None

    def thresholds(self, scores: Sequence[float]) -> tuple[tuple[float, str], ...]:
        """Return the least score of each quality tag, the highest first; ``scores``: of the training images."""
        ordered = sorted(scores)

        def least_score(threshold: float) -> float:
            if self.quality_by == "score":
                return threshold
            return ordered[int(threshold * len(ordered))] if threshold and ordered else -math.inf

        pairs = ((least_score(threshold), tag) for tag, threshold in self.quality.items())
        return tuple(sorted(pairs, reverse=True))

    def arrange(self, tags: ImageTags, thresholds: Sequence[tuple[float, str]]) -> dict[str, list[str]]:
        """Return the tags of an image's caption by category, in the caption's order and spelling."""
        quality = tuple(tag for least, tag in thresholds if tags.score is not None and tags.score >= least)[:1]
        derived: dict[str, tuple[str, ...]] = {"rating": (tags.rating,) if tags.rating else (), "quality": quality}
        sidecar_tags = {tag for category_tags in tags.by_category.values() for tag in category_tags}
        implied = set().union(*(self._implied.get(tag, ()) for tag in sidecar_tags))
        out: dict[str, list[str]] = {}
        for category in self.categories:
            candidates = derived.get(category, tags.by_category.get(category, ()))
            names = [tag for tag in candidates if tag not in self.exclude]
            if self.implied == "remove" and category in SIDECAR_CATEGORIES:
                names = [tag for tag in names if tag not in implied]
            elif category == "general":
                names += sorted(implied - sidecar_tags - set(self.exclude))
            out[category] = [underscores_to_spaces(tag) if self.underscores == "replace" else tag for tag in names]
        return out

    def caption(self, tags: Mapping[str, Sequence[str]], rng: random.Random | None) -> str:
        """Join tags by category to a caption; they are shuffled and dropped only with ``rng``."""
        rows = [(tag, number) for number, category_tags in enumerate(tags.values()) for tag in category_tags]
        first, rest = rows[: self.keep_first], rows[self.keep_first :]
        if rng and self.shuffle != "none":
            order = {row: (row[1] if self.shuffle == "within" else 0, rng.random()) for row in rest}
            rest.sort(key=order.__getitem__)
        if rng and self.dropout:
            survivors = [row for row in rest if rng.random() >= self.dropout]
            rest = survivors if survivors or first else rest[:1]
        return self.separator.join(tag for tag, _ in first + rest)


_PERSON_NOUNS = {"girl": "girl", "boy": "boy", "other": "person"}
_NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6+": "many"}
_PLURAL = {"girl": "girls", "boy": "boys", "person": "people"}


def sentence(tags: Mapping[str, Sequence[str]]) -> str:
    """Turn tags by category into prose by a fixed rule, for scorers that read sentences.

    People come first, then names, attributes and artists: "one girl, hatsune miku from vocaloid, with long hair and
    smile, drawn by wlop". Quality, rating and meta tags are left out, since they name nothing visible.
    """
    general = [underscores_to_spaces(tag) for tag in tags.get("general", ())]
    person_tags = [tag for tag in general if _people(tag)]
    attributes = [tag for tag in general if tag not in person_tags and tag not in ("solo", "duo")]
    people = _enumerate([_people(tag) for tag in person_tags])
    characters = _enumerate([underscores_to_spaces(tag) for tag in tags.get("character", ())])
    series = _enumerate([underscores_to_spaces(tag) for tag in tags.get("copyright", ())])
    artists = _enumerate([underscores_to_spaces(tag) for tag in tags.get("artist", ())])
    names = " from ".join(part for part in (characters, series) if part)
    parts = [part for part in (people, names) if part]
    if attributes:
        parts.append(f"with {_enumerate(attributes)}" if parts else _enumerate(attributes))
    if artists:
        parts.append(f"drawn by {artists}")
    return ", ".join(parts)


def _people(tag: str) -> str:
    """Spell a tag that counts people, such as ``2girls``, as "two girls"; empty for any other tag."""
    for noun, person in _PERSON_NOUNS.items():
        number = tag.removesuffix("s").removesuffix(noun)
        if number in _NUMBERS and tag.removesuffix("s") == number + noun:
            return f"{_NUMBERS[number]} {person if number == '1' else _PLURAL[person]}"
    return ""


def _enumerate(words: Sequence[str]) -> str:
    """Join words as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
