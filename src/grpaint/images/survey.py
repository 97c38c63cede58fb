"""What is in a data set: counts, sizes, captions, duplicates, bad files, and a sheet of its pictures."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grpaint.core.rng import permutation, seed_of
from grpaint.images.collection import Collection, Item
from grpaint.images.data import ImageData
from grpaint.images.pictures import WHITE

NEAR = 3  # bits of 64 in which the average hashes of near duplicates may differ
LIGHTER = 32  # of 255, by which a place of a near duplicate may differ
Count = Callable[[str], int]


def survey(data: ImageData, lengths: Mapping[str, Count]) -> dict[str, Any]:
    """All that can be said without a model; ``lengths`` count a caption, by what they count."""
    out: dict[str, Any] = {"collections": [_account(c) for c in data.collections]}
    items = [item for collection in data.collections for item in collection.captioned]
    out["captioned"] = len(items)
    if not items:
        return out
    out["sides"] = _sides(items)
    out["buckets"] = {f"{width}x{high}": len(of) for (width, high), of in data.by_size(items).items()}
    texts = [data.prompt(item).text for item in items]
    out["captions"] = {
        "different": len(set(texts)),
        "lengths": {name: _spread([count(text) for text in texts]) for name, count in lengths.items()},
    }
    out["duplicates"] = {"exact": exact_duplicates(items), "near": near_duplicates(items)}
    return out


def _account(collection: Collection) -> dict[str, Any]:
    return {
        "key": collection.key,
        "path": str(collection.path),
        "images": len(collection.entries),
        "bad": dict(Counter(collection.bad.values())),
        "bad_files": collection.bad,
        "left_out_by_tags": dict(collection.unwanted),
        "without_caption": collection.bare,
    }


def _sides(items: Sequence[Item]) -> dict[str, list[int]]:
    """Smallest, median and largest of each side."""
    return {name: _spread([item.size[axis] for item in items]) for axis, name in enumerate(("width", "height"))}


def _spread(numbers: Sequence[int]) -> list[int]:
    ordered = sorted(numbers)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def exact_duplicates(items: Sequence[Item]) -> list[list[str]]:
    """Names of files with the same bytes, together."""
    same: dict[str, list[str]] = {}
    for item in items:
        same.setdefault(item.seen.digest, []).append(item.entry.name)
    return [names for names in same.values() if len(names) > 1]


def near_duplicates(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Pairs of other bytes that look alike: nearly the same average hash, and 16 x 16 copies alike everywhere.

    Hashes with at most ``NEAR`` different bits share one of ``NEAR`` + 1 parts of 16 bits, so only those are compared.
    """
    copies: dict[int, np.ndarray] = {}

    def copy(row: int) -> np.ndarray:
        if row not in copies:
            copies[row] = np.asarray(items[row].picture((16, 16)), dtype=np.int16)
        return copies[row]

    def alike(one: int, other: int) -> bool:
        same = items[one].seen.digest == items[other].seen.digest
        return not same and bool(np.abs(copy(one) - copy(other)).max() <= LIGHTER)

    hashes = np.array([item.seen.hash for item in items], dtype=np.uint64)
    parts: dict[tuple[int, int], list[int]] = {}
    for row, item in enumerate(items):
        for key in _parts(item):
            parts.setdefault(key, []).append(row)
    sharing = {key: np.array(rows) for key, rows in parts.items()}
    found = []
    for one, item in enumerate(items):  # a row at a time: flat pictures all share parts
        others = np.unique(np.concatenate([sharing[key][sharing[key] > one] for key in _parts(item)]))
        near = others[np.bitwise_count(hashes[others] ^ hashes[one]) <= NEAR]
        found += [(item.entry.name, items[other].entry.name) for other in near.tolist() if alike(one, other)]
    return found


def _parts(item: Item) -> list[tuple[int, int]]:
    """The parts of its hash, with their places."""
    return [(part, item.seen.hash >> 16 * part & 0xFFFF) for part in range(NEAR + 1)]


def contact_sheet(items: Sequence[Item], side: int = 96, columns: int = 10, rows: int = 8) -> Image.Image:
    """Pictures of the set in whole, each within ``side`` pixels; a keyed choice where there are too many."""
    places = permutation((0, "sheet"), len(items))[: columns * rows].sort().values.tolist()
    lines = -(-len(places) // columns)
    page = Image.new("RGB", (columns * (side + 4) + 4, lines * (side + 4) + 4), WHITE)
    for n, place in enumerate(places):
        item = items[place]
        scale = side / max(item.size)
        small = item.picture((max(1, round(item.size[0] * scale)), max(1, round(item.size[1] * scale))))
        left, top = (4 + at * (side + 4) for at in (n % columns, n // columns))
        page.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return page


def write_captions(data: ImageData, file: Path, draws: int) -> int:
    """Each training image's name and caption, ``draws`` times where tags are shuffled or dropped; how many lines."""
    lines = []
    for row, item in enumerate(data.training):
        plain = [data.prompt(item)] if not draws else []
        drawn = [data.prompt(item, random.Random(seed_of(0, row, n))) for n in range(draws)]
        lines += [f"{item.entry.name}\t{prompt.text}" for prompt in plain + drawn]
    aside = file.with_name(f"{file.name}.unfinished")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    aside.replace(file)
    return len(lines)
