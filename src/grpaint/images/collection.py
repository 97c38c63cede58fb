"""One path's images, verified once: what is whole and captioned, and what was left out and why."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from grpaint.core.errors import ConfigError, RunError
from grpaint.images import cache
from grpaint.images.opening import open_source
from grpaint.images.pictures import BadImage, average_hash, fitted, read_picture
from grpaint.images.sources import Entry, Source
from grpaint.images.tags import Tagged, Tags, read_tags

_WORKERS = min(8, os.cpu_count() or 1)


class Seen(NamedTuple):
    """What reading an image file whole has shown: its size upright, a digest of its bytes, its average hash.

    ``bad`` is the reason why it cannot be used, empty where it can.
    """

    bad: str
    width: int = 0
    height: int = 0
    digest: str = ""
    hash: int = 0


@dataclass(frozen=True)
class Item:
    """A whole image with what was said of it.

    ``caption``: its text, or its tags in their order; ``said``: the same as written, whatever is made of it.
    """

    entry: Entry
    seen: Seen
    caption: str
    said: str
    tagged: Tagged | None
    owner: "Collection"

    def picture(self, size: tuple[int, int]) -> Image.Image:
        """It, at a size (width, height).

        Raises:
            RunError: where the file has turned bad since it was verified.
        """
        try:
            return fitted(read_picture(self.owner.source.read(self.entry)), size)
        except BadImage as bad:
            raise RunError(
                f"{self.owner.path}: {self.entry.name}: {bad}; it was whole when the data was first opened. Put it "
                "back and go on with --resume."
            ) from None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.seen.width, self.seen.height


@dataclass(frozen=True)
class Wanted:
    """What is asked of a collection: the names of its columns, and how its tags are read."""

    caption: str
    image: str
    tags: Tags | None


@dataclass(frozen=True)
class Collection:
    """The images at ``path``; opened, verified and sorted out at first use. ``key`` names the setting in messages."""

    path: Path
    key: str
    wanted: Wanted

    @cached_property
    def source(self) -> Source:
        """Where the bytes come from."""
        return open_source(self.path, self.wanted.caption, self.wanted.image, self.key)

    @cached_property
    def entries(self) -> list[Entry]:
        """Every image there, good or bad."""
        return self.source.entries()

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """What each file's bytes have shown, read whole once and remembered until the file changes."""
        subject = f"images of {self.path.resolve()}, {self.wanted.image}"
        known, stamps = cache.read(subject), {file: cache.stamp(file) for file in {e.holder for e in self.entries}}
        current = {e.name: known.get(e.name) for e in self.entries}
        new = [e for e in self.entries if (current[e.name] or [None])[0] != stamps[e.holder]]
        with ThreadPoolExecutor(_WORKERS) as workers:
            for entry, seen in zip(new, workers.map(self._look, new), strict=True):
                current[entry.name] = [stamps[entry.holder], *seen]
        if new:
            cache.write(subject, current)
        return {name: Seen(*what[1:]) for name, what in current.items() if what}

    def _look(self, entry: Entry) -> Seen:
        try:
            raw = self.source.read(entry)
            picture = read_picture(raw)
        except BadImage as bad:
            return Seen(str(bad))
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
        return Seen("", *picture.size, digest, average_hash(picture))

    @cached_property
    def bad(self) -> dict[str, str]:
        """Names of files that cannot be used, and why."""
        return {name: seen.bad for name, seen in self.seen.items() if seen.bad}

    @cached_property
    def _sorted(self) -> tuple[list[Item], Counter[str], list[str]]:
        items, unwanted, bare = [], Counter[str](), []
        for entry in self.entries:
            if entry.name in self.bad:
                continue
            item = self._item(entry)
            where = f"{self.path}: {entry.name}"
            why = self.wanted.tags.wants(item.tagged, where) if self.wanted.tags and item.tagged else None
            if why:
                unwanted[why] += 1
            elif not item.caption:
                bare.append(entry.name)
            else:
                items.append(item)
        return items, unwanted, bare

    def _item(self, entry: Entry) -> Item:
        where, caption, tags = f"{self.path}: {entry.name}", self.wanted.caption, self.wanted.tags
        if tags:
            tagged = read_tags(entry.fields, caption, where)
            words = tags.caption(tags.by_category(replace(tagged, score=None, rating=None), ()), None)
            said = " ".join(sorted(tag for part in tagged.tags.values() for tag in part))
            return Item(entry, self.seen[entry.name], words, said, tagged, self)
        text = entry.fields.get(caption) or ""
        if not isinstance(text, str):
            raise ConfigError(f'{where}: its "{caption}" is no text: {text!r:.60}.')
        return Item(entry, self.seen[entry.name], text.strip(), text.strip(), None, self)

    @property
    def unwanted(self) -> Counter[str]:
        """How many images ``tags`` leaves out, by reason."""
        return self._sorted[1]

    @property
    def bare(self) -> list[str]:
        """Names of wanted images whose caption is empty."""
        return self._sorted[2]

    @property
    def captioned(self) -> list[Item]:
        """Whole images that are wanted and have a caption."""
        return self._sorted[0]

    @property
    def items(self) -> list[Item]:
        """The same, where every wanted image has a caption.

        Raises:
            ConfigError: where some have none, or nothing is left.
        """
        if self.bare:
            raise ConfigError(
                f'{self.key} = "{self.path}": {len(self.bare)} of {len(self.bare) + len(self.captioned)} images have '
                f"no caption: {_few(self.bare)}. Give each a .txt or .json beside it, a line of metadata.jsonl or a "
                f'"{self.wanted.caption}" column (data.caption names it; data.tags reads booru tags), or take it out. '
                "Captions are dropped by data.caption_dropout."
            )
        if not self.captioned:
            raise ConfigError(f'{self.key} = "{self.path}": no image there can be used ({self.account()}).')
        return self.captioned

    def account(self) -> str:
        """How many images there are, and how many are left out by what reason."""
        left = Counter(self.bad.values()) + self.unwanted
        parts = [f"{len(self.entries)} images", *(f"{count} left out: {why}" for why, count in left.most_common())]
        return ", ".join(parts)


def parallel(work: Callable[[Any], Any], things: Iterable[Any]) -> list[Any]:
    """``work`` done on each by a few threads; decoders work outside Python's lock."""
    with ThreadPoolExecutor(_WORKERS) as workers:
        return list(workers.map(work, things))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")


def metadata(item: Item) -> Mapping[str, object]:
    """What was said of an item, and the name of its file."""
    return {**item.entry.fields, "file": item.entry.name}
