"""Describe a data set: counts, sizes, captions, duplicates, bad files, and a contact sheet of its pictures."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grpaint.core.rng import permutation, seed_of
from grpaint.core.text import printable
from grpaint.images.collection import CaptionedImage, Collection
from grpaint.images.data import ImageData
from grpaint.images.pictures import WHITE
from grpaint.storage.atomic import write_atomic

MAX_HASH_BITS = 3  # of 64: the average hashes of near duplicates differ in at most so many bits
MAX_PIXEL_CHANGE = 32  # of 255: each pixel of the 16 x 16 copies of near duplicates differs by at most so much
Count = Callable[[str], int]


def survey(data: ImageData, lengths: Mapping[str, Count]) -> dict[str, Any]:
    """Describe a data set as a JSON object, without opening a model.

    ``lengths``: functions that measure the length of a caption, by the unit they count, such as "words".
    """
    out: dict[str, Any] = {"collections": [_collection_summary(c) for c in data.collections]}
    images = [image for collection in data.collections for image in collection.captioned]
    out["captioned"] = len(images)
    if not images:
        return out
    out["sides"] = _sides(images)
    out["buckets"] = {f"{width}x{height}": len(group) for (width, height), group in data.by_size(images).items()}
    texts = [data.prompt(image).text for image in images]
    out["captions"] = {
        "different": len(set(texts)),
        "lengths": {name: _quantiles([count(text) for text in texts]) for name, count in lengths.items()},
    }
    out["duplicates"] = {"exact": exact_duplicates(images), "near": near_duplicates(images)}
    return out


def _collection_summary(collection: Collection) -> dict[str, Any]:
    return {
        "key": collection.key,
        "path": str(collection.path),
        "images": len(collection.entries),
        "left_out": dict(Counter(collection.left_out_files.values())),
        "left_out_files": collection.left_out_files,
        "left_out_by_tags": dict(collection.left_out_by_tags),
        "without_caption": collection.without_caption,
    }


def _sides(images: Sequence[CaptionedImage]) -> dict[str, list[int]]:
    return {name: _quantiles([image.size[axis] for image in images]) for axis, name in enumerate(("width", "height"))}


def _quantiles(numbers: Sequence[int]) -> list[int]:
    """Return the smallest number, the median and the largest."""
    ordered = sorted(numbers)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def exact_duplicates(images: Sequence[CaptionedImage]) -> list[list[str]]:
    """Group the names of files that have the same bytes."""
    by_digest: dict[str, list[str]] = {}
    for image in images:
        by_digest.setdefault(image.scan.digest, []).append(image.entry.name)
    return [names for names in by_digest.values() if len(names) > 1]


def near_duplicates(images: Sequence[CaptionedImage]) -> list[tuple[str, str]]:
    """List pairs of different files that look alike: close average hashes, and nearly equal 16 x 16 copies.

    Copies are nearly equal if no channel of a pixel differs by more than ``MAX_PIXEL_CHANGE`` = 32 of 255.

    Two hashes that differ in at most ``MAX_HASH_BITS`` = 3 bits are equal in one of their four 16-bit parts, so only
    images that share such a part are compared.
    """
    copies: dict[int, np.ndarray] = {}

    def copy(row: int) -> np.ndarray:
        if row not in copies:
            copies[row] = np.asarray(images[row].picture((16, 16)), dtype=np.int16)
        return copies[row]

    def alike(one: int, other: int) -> bool:
        same_bytes = images[one].scan.digest == images[other].scan.digest
        return not same_bytes and bool(np.abs(copy(one) - copy(other)).max() <= MAX_PIXEL_CHANGE)

    hashes = np.array([image.scan.hash for image in images], dtype=np.uint64)
    rows_by_part: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        for part in _hash_parts(image):
            rows_by_part.setdefault(part, []).append(row)
    sharing = {part: np.array(rows) for part, rows in rows_by_part.items()}
    pairs = []
    for one, image in enumerate(images):  # one row at a time, to save memory: flat pictures all share a part
        others = np.unique(np.concatenate([sharing[part][sharing[part] > one] for part in _hash_parts(image)]))
        near = others[np.bitwise_count(hashes[others] ^ hashes[one]) <= MAX_HASH_BITS]
        pairs += [(image.entry.name, images[other].entry.name) for other in near.tolist() if alike(one, other)]
    return pairs


def _hash_parts(image: CaptionedImage) -> list[tuple[int, int]]:
    """Split an image's hash into 16-bit parts, each with its index."""
    return [(part, image.scan.hash >> 16 * part & 0xFFFF) for part in range(MAX_HASH_BITS + 1)]


def contact_sheet(images: Sequence[CaptionedImage], side: int = 96, columns: int = 10, rows: int = 8) -> Image.Image:
    """Lay out thumbnails of whole pictures on a page, each within ``side`` pixels.

    If there are more images than places, the same random choice of them is shown each time.
    """
    chosen = permutation((0, "sheet"), len(images))[: columns * rows].sort().values.tolist()
    lines = -(-len(chosen) // columns)
    page = Image.new("RGB", (columns * (side + 4) + 4, lines * (side + 4) + 4), WHITE)
    for n, row in enumerate(chosen):
        image = images[row]
        scale = side / max(image.size)
        small = image.picture((max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale))))
        left, top = (4 + at * (side + 4) for at in (n % columns, n // columns))
        page.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return page


def write_captions(data: ImageData, file: Path, draws: int) -> int:
    """Write a line for each training image, its name and caption with a tab between; returns the number of lines.

    Line ends, tabs and other control characters of a caption are shown with escapes such as ``\\n``.

    ``draws``: with 0 tags are neither shuffled nor dropped; otherwise each image has so many lines of random captions.
    """
    lines = []
    for row, image in enumerate(data.training):
        if draws:
            prompts = [data.prompt(image, random.Random(seed_of(0, row, n))) for n in range(draws)]
        else:
            prompts = [data.prompt(image)]
        lines += [f"{image.entry.name}\t{printable(prompt.text)}" for prompt in prompts]
    write_atomic(file, "\n".join(lines) + "\n")
    return len(lines)
