"""The captions of the embedded world: a small grammar, its tokens and parser, and a split by composition."""

import difflib
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from grpaint.core.errors import ConfigError

Kind = Literal["single", "size", "two", "count", "relation", "mixed"]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("a", "two", "three", "four")
KINDS: tuple[Kind, ...] = ("single", "size", "two", "count", "relation", "mixed")
HELD_OUT_KINDS: tuple[Kind, ...] = KINDS[1:]  # every single colour x shape occurs in training
MAX_OBJECTS = 4
MAX_TOKENS = 12

_PLURAL = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}
VOCABULARY = (
    "",  # padding; an empty caption is all padding
    *("a", "an", "two", "three", "four", "and", "left", "right", "of", "above", "below"),
    *SIZES,
    *COLOURS,
    *SHAPES,
    *_PLURAL.values(),
)
_TOKEN = {word: number for number, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Thing:
    """One side of a caption: ``count`` equal objects; ``size`` is empty if the caption does not name one."""

    count: int
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        noun = self.shape if self.count == 1 else _PLURAL[self.shape]
        words = [word for word in (self.size, self.colour, noun) if word]
        article = COUNTS[self.count - 1]
        if article == "a" and words[0][0] in "aeiou":
            article = "an"
        return " ".join([article, *words])


@dataclass(frozen=True)
class Caption:
    """What a scene must show: one or two things, and the relation of the first to the second, or ""."""

    things: tuple[Thing, ...]
    relation: str = ""

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(map(str, self.things))

    @property
    def kind(self) -> Kind:
        """The task kind, which follows from the caption itself."""
        first = self.things[0]
        if len(self.things) == 1:
            return "count" if first.count > 1 else "size" if first.size else "single"
        if any(thing.count > 1 or thing.size for thing in self.things):
            return "mixed"
        return "relation" if self.relation else "two"

    @property
    def held_out(self) -> bool:
        """Whether the caption contains a composition that training never shows.

        Held out are about an eighth of the unordered pairs of objects, of the colour-shape-relation triples of the
        first object, and of the colour-shape-size and colour-shape-count triples, at any place in a caption.
        """
        return any(_is_held_out(composition) for composition in self._compositions())

    def _compositions(self) -> Iterator[str]:
        names = [f"{thing.colour} {thing.shape}" for thing in self.things]
        for thing, name in zip(self.things, names, strict=True):
            if thing.size or thing.count > 1:
                yield f"{thing.count} {thing.size} {name}"
        if len(names) > 1:
            yield " + ".join(sorted(names))
            if self.relation:
                yield f"{names[0]} {self.relation}"


def _is_held_out(composition: str) -> bool:
    """Choose an eighth of all compositions by their hash."""
    return hashlib.blake2b(composition.encode(), digest_size=8, salt=b"s4").digest()[0] % 8 == 0


def _thing(rng: random.Random, colours: Sequence[str], count: int = 1, size: str = "") -> Thing:
    return Thing(count, size, rng.choice(colours), rng.choice(SHAPES))


def _compose(kind: Kind, rng: random.Random) -> Caption:
    if kind in ("single", "size", "count"):
        count = rng.randint(2, MAX_OBJECTS) if kind == "count" else 1
        return Caption((_thing(rng, COLOURS, count, rng.choice(SIZES) if kind == "size" else ""),))
    colours = rng.sample(COLOURS, 2)  # different colours, since the task is to bind each to its shape
    first, second = (_thing(rng, [colour]) for colour in colours)
    if kind == "mixed":
        if rng.random() < 0.5:
            sizes = rng.sample(SIZES, 2)
            first, second = (
                Thing(1, size, thing.colour, thing.shape) for size, thing in zip(sizes, (first, second), strict=True)
            )
        else:
            first = Thing(2, "", first.colour, first.shape)
    return Caption((first, second), "" if kind == "two" else rng.choice(RELATIONS))


def draw_caption(kind: Kind, rng: random.Random, *, held_out: bool) -> Caption:
    """Draw a caption of this kind from the held-out or the training side of the split.

    Raises:
        ValueError: for a held-out caption of kind "single", since there is none.
    """
    if held_out and kind == "single":
        raise ValueError("no caption of kind single is held out: every colour x shape occurs in training")
    while True:
        caption = _compose(kind, rng)
        if caption.held_out == held_out:
            return caption


def tokens(text: str) -> list[int]:
    """Return the token numbers of a caption, padded with 0 to ``MAX_TOKENS``.

    Raises:
        ConfigError: if a word is not in the vocabulary, or there are more than ``MAX_TOKENS`` words.
    """
    words = text.lower().split()
    for word in words:
        if word not in _TOKEN:
            near = difflib.get_close_matches(word, VOCABULARY, 1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            vocabulary = " ".join(VOCABULARY[1:])
            raise ConfigError(
                f'prompt "{text}": the built-in model does not know "{word}".{hint} It knows: {vocabulary}.'
            )
    if len(words) > MAX_TOKENS:
        raise ConfigError(f'prompt "{text}": {len(words)} words, the built-in model reads at most {MAX_TOKENS}.')
    return [_TOKEN[word] for word in words] + [0] * (MAX_TOKENS - len(words))


def _parse_thing(words: list[str]) -> Thing:
    article, *rest = words
    count = COUNTS.index("a" if article == "an" else article) + 1
    size = rest.pop(0) if rest[0] in SIZES else ""
    colour, noun = rest
    shape = noun if count == 1 else _SINGULAR[noun]
    if colour not in COLOURS or shape not in SHAPES:
        raise ValueError(noun)
    return Thing(count, size, colour, shape)


def checkable(caption: Caption) -> bool:
    """Whether the checker can judge a caption: its sides look different, and have at most ``MAX_OBJECTS`` objects."""
    looks = {(thing.colour, thing.shape) for thing in caption.things}
    return len(looks) == len(caption.things) <= 2 and sum(thing.count for thing in caption.things) <= MAX_OBJECTS


def parse(text: str) -> Caption:
    """Parse a caption.

    Raises:
        ConfigError: if the text is not a sentence of the grammar.
    """
    line = f" {' '.join(text.lower().split())} "
    relation = next((r for r in RELATIONS if f" {r} " in line), "")
    parts = line.split(f" {relation or 'and'} ")
    try:
        caption = Caption(tuple(_parse_thing(part.split()) for part in parts), relation)
    except (ValueError, KeyError, IndexError):
        caption = None
    if caption is None or not checkable(caption):
        tokens(text)  # raises at an unknown word, which is the likelier mistake and has the better message
        raise ConfigError(
            f'prompt "{text}": not a caption that the checker can read. Say "a red circle", "three blue crosses" or '
            '"a small red circle above a large green square": at most 4 objects, the two sides of different looks.'
        )
    return caption
