"""The images at one path, verified once: which can be used, which have no caption, and which are left out and why."""

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
from grpaint.images.booru import ImageTags, read_tags
from grpaint.images.opening import open_source
from grpaint.images.pictures import BadImage, Profiles, average_hash, crop_to, read_picture
from grpaint.images.sidecars import is_missing
from grpaint.images.sources import ImageEntry, ImageSource
from grpaint.images.tags import TagSettings

_WORKERS = min(8, os.cpu_count() or 1)


class ImageScan(NamedTuple):
    """The facts from decoding an image file once: its size, a digest of its bytes, and its average hash.

    ``problem``: the reason why the file cannot be used, or empty. ``width`` and ``height``: pixels, upright.
    """

    problem: str
    width: int = 0
    height: int = 0
    digest: str = ""
    hash: int = 0


@dataclass(frozen=True)
class CaptionedImage:
    """A usable image with its caption and tags.

    ``caption``: its text, or its tags in the order of their categories. ``split_text``: the text that decides whether
    the image is held out; it does not change with the settings of ``data.tags``.
    """

    entry: ImageEntry
    scan: ImageScan
    caption: str
    split_text: str
    tags: ImageTags | None
    collection: "Collection"

    def picture(self, size: tuple[int, int]) -> Image.Image:
        """Read the image and crop it to ``size`` (width, height).

        Raises:
            RunError: if the file has become unusable since it was verified.
        """
        try:
            return crop_to(self.collection.read(self.entry), size)
        except BadImage as bad:
            raise RunError(
                f"{self.collection.path}: {self.entry.name}: {bad}; it was whole when the data was first opened. "
                "Restore the file and continue with --resume."
            ) from None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the stored image, in pixels."""
        return self.scan.width, self.scan.height


@dataclass(frozen=True)
class ReadOptions:
    """What to read from a collection: the caption and image columns, the settings for tags, if any, and colours.

    ``profiles``: whether embedded ICC profiles are converted to sRGB.
    """

    caption_column: str
    image_column: str
    tags: TagSettings | None
    profiles: Profiles = "convert"


@dataclass(frozen=True)
class Collection:
    """The images at ``path``, opened and verified at first use; ``key`` is the setting that errors name."""

    path: Path
    key: str
    options: ReadOptions

    @cached_property
    def source(self) -> ImageSource:
        """The source that reads the files."""
        return open_source(self.path, self.options.caption_column, self.options.image_column, self.key)

    @cached_property
    def entries(self) -> list[ImageEntry]:
        """Every image at the path, usable or not."""
        return self.source.entries()

    @cached_property
    def scans(self) -> dict[str, ImageScan]:
        """The scan of each image by name; each file is decoded once, and again only after it has changed."""
        subject = f"images of {self.path.resolve()}, {self.options.image_column}, {self.options.profiles}"
        cached_scans, stamps = cache.read(subject), {file: cache.stamp(file) for file in {e.file for e in self.entries}}
        current = {e.name: cached_scans.get(e.name) for e in self.entries}
        new = [e for e in self.entries if (current[e.name] or [None])[0] != stamps[e.file]]
        with ThreadPoolExecutor(_WORKERS) as workers:
            for entry, scan in zip(new, workers.map(self._scan, new), strict=True):
                current[entry.name] = [stamps[entry.file], *scan]
        if new:
            cache.write(subject, current)
        return {name: ImageScan(*row[1:]) for name, row in current.items() if row}

    def read(self, entry: ImageEntry) -> Image.Image:
        """Read the image of an entry.

        Raises:
            BadImage: if it cannot be used.
        """
        return read_picture(self.source.read(entry), self.options.profiles)

    def _scan(self, entry: ImageEntry) -> ImageScan:
        try:
            raw = self.source.read(entry)
            picture = read_picture(raw, self.options.profiles)
        except BadImage as bad:
            return ImageScan(str(bad))
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
        return ImageScan("", *picture.size, digest, average_hash(picture))

    @cached_property
    def bad_files(self) -> dict[str, str]:
        """The names of images that cannot be used, each with the reason."""
        return {name: scan.problem for name, scan in self.scans.items() if scan.problem}

    @cached_property
    def left_out_files(self) -> dict[str, str]:
        """The names of everything that looks like an image and is not used, each with the reason."""
        return {**self.bad_files, **self.source.left_out()}

    @cached_property
    def _sorted(self) -> tuple[list[CaptionedImage], Counter[str], list[str]]:
        """Sort the usable images: those with a caption, counts of those left out by tags, names without a caption."""
        captioned, left_out, without_caption = [], Counter[str](), []
        tag_settings = self.options.tags
        for entry in self.entries:
            if entry.name in self.bad_files:
                continue
            image = self._read_caption(entry)
            location = f"{self.path}: {entry.name}"
            reason = tag_settings.exclusion_reason(image.tags, location) if tag_settings and image.tags else None
            if reason:
                left_out[reason] += 1
            elif not image.caption:
                without_caption.append(entry.name)
            else:
                captioned.append(image)
        return captioned, left_out, without_caption

    def _read_caption(self, entry: ImageEntry) -> CaptionedImage:
        location, column = f"{self.path}: {entry.name}", self.options.caption_column
        scan, settings = self.scans[entry.name], self.options.tags
        if settings:
            tags = read_tags(entry.fields, column, location)
            text = settings.caption(settings.arrange(replace(tags, score=None, rating=None), ()), None)
            split_text = " ".join(sorted(tag for category_tags in tags.by_category.values() for tag in category_tags))
            return CaptionedImage(entry, scan, text, split_text, tags, self)
        text = "" if is_missing(entry.fields.get(column)) else entry.fields[column]
        if not isinstance(text, str):
            raise ConfigError(f'{location}: its "{column}" is no text: {text!r:.60}.')
        return CaptionedImage(entry, scan, text.strip(), text.strip(), None, self)

    @property
    def left_out_by_tags(self) -> Counter[str]:
        """How many images the settings in ``data.tags`` leave out, by reason."""
        return self._sorted[1]

    @property
    def without_caption(self) -> list[str]:
        """The names of images that ``data.tags`` does not leave out, but whose caption is empty."""
        return self._sorted[2]

    @property
    def captioned(self) -> list[CaptionedImage]:
        """The usable images that ``data.tags`` does not leave out and that have a caption."""
        return self._sorted[0]

    @property
    def images(self) -> list[CaptionedImage]:
        """The same images as ``captioned``, after a check that none is without a caption.

        Raises:
            ConfigError: if some have no caption, or no image is left.
        """
        if self.without_caption:
            count = len(self.without_caption)
            raise ConfigError(
                f'{self.key} = "{self.path}": {count} of {count + len(self.captioned)} images have '
                f"no caption: {_first_few(self.without_caption)}. Give each a .txt or .json beside it, a line of "
                f'metadata.jsonl or .csv, or a "{self.options.caption_column}" column (data.caption names it; '
                "data.tags reads booru tags), or take it out. Captions are dropped by data.caption_dropout."
            )
        if not self.captioned:
            raise ConfigError(f'{self.key} = "{self.path}": no image there can be used ({self.summary()}).')
        return self.captioned

    def summary(self) -> str:
        """Describe in a line how many images there are, and how many are left out for which reason."""
        left_out = Counter(self.left_out_files.values()) + self.left_out_by_tags
        parts = [f"{len(self.entries)} images", *(f"{n} left out: {reason}" for reason, n in left_out.most_common())]
        return ", ".join(parts)


def map_in_threads(function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
    """Call ``function`` on each argument in a few threads; results in order. Image decoders release Python's lock."""
    with ThreadPoolExecutor(_WORKERS) as workers:
        return list(workers.map(function, arguments))


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")


def prompt_metadata(image: CaptionedImage) -> Mapping[str, object]:
    """Return the metadata fields of an image, with the name of its file as ``file``."""
    return {**image.entry.fields, "file": image.entry.name}
