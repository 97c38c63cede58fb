"""Draw a data set of scenes with booru-style sidecars, of any number of pictures and any size.

The general tags use only words of the built-in model and need no order: "large_red_circle", "two_blue_crosses". The tag
of the second side of a relation contains it: "above_small_green_square".
"""

import json
from collections.abc import Callable
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.encoding import eight_bit_picture
from grpaint.scenes.captions import HELD_OUT_KINDS, KINDS, Caption, Kind, draw_caption
from grpaint.scenes.render import keyed_random, render
from grpaint.storage.atomic import atomic_folder

ARTISTS = ("compass_and_ruler", "wobbly_hand", "paper_cutter", "sign_painter")
COPYRIGHTS = ("flatland", "the_shapes")
METAS = ("highres", "scan", "commission", "flat_color")
RATINGS = ("g", "g", "g", "s", "q", "e")
_BATCH = 256


def general_tags(caption: Caption) -> list[str]:
    """Return one tag for each side of a caption; the second one names the relation of the first to it."""
    names = [str(thing).removeprefix("a ").removeprefix("an ") for thing in caption.things]
    if caption.relation:
        names[1] = f"{caption.relation} {names[1]}"
    return [name.replace(" ", "_") for name in names]


def sidecar(caption: Caption, number: int, seed: int) -> dict[str, object]:
    """Return an image's metadata under danbooru's field names; what a picture cannot show is random."""
    rng = keyed_random(seed, number, "sidecar")
    tags = {
        "general": general_tags(caption),
        "artist": [rng.choice(ARTISTS)],
        "copyright": [rng.choice(COPYRIGHTS)],
        "character": [],
        "meta": sorted(rng.sample(METAS, rng.randint(0, 2))),
    }
    fields: dict[str, object] = {"id": number + 1, "rating": rng.choice(RATINGS), "score": round(rng.gauss(20, 15))}
    fields |= {f"tag_string_{category}": " ".join(names) for category, names in tags.items()}
    return fields | {"sentence": str(caption), "kind": caption.kind}


def draw_set(folder: Path, count: int, held_out: int, seed: int, side: int, log: Callable[[str], None]) -> None:
    """Write ``count`` pictures to ``folder``/train, and ``held_out`` of held-out compositions to ``folder``/held-out.

    ``side``: pixels a side. The same seed gives the same files, and a larger count begins with the files of a smaller
    one. The folder appears when it is complete.

    Raises:
        ConfigError: if the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"--out {folder}: exists; name a new folder.")
    with atomic_folder(folder) as temporary:
        _write_pictures(temporary / "train", count, KINDS, seed, side, held_out=False)
        _write_pictures(temporary / "held-out", held_out, HELD_OUT_KINDS, seed, side, held_out=True)
    log(f"{folder}: {count} pictures of {side} x {side} in train, {held_out} in held-out")


def _write_pictures(folder: Path, count: int, kinds: tuple[Kind, ...], seed: int, side: int, *, held_out: bool) -> None:
    folder.mkdir(parents=True)
    key = (seed, "drawn", "held-out" if held_out else "train")
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        captions = [draw_caption(kinds[n % len(kinds)], keyed_random(*key, n), held_out=held_out) for n in numbers]
        for n, caption, image in zip(numbers, captions, render(captions, (*key, first), side), strict=True):
            eight_bit_picture(image).save(folder / f"{n:06d}.png")
            text = json.dumps(sidecar(caption, n, seed), indent=1)
            (folder / f"{n:06d}.json").write_text(text + "\n", encoding="utf-8")
