"""A booru-style data set of drawn scenes: pictures with danbooru's kind of sidecar, of any number and size.

The tags of what is seen use the words of the built-in model alone and need no order: "large_red_circle",
"two_blue_crosses", and what lies beside another thing says so itself, "above_small_green_square".
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.encoding import eight_bit_picture
from grpaint.scenes.captions import HELD_OUT_KINDS, KINDS, Caption, Kind, draw_caption
from grpaint.scenes.render import draw_of, render

ARTISTS = ("compass_and_ruler", "wobbly_hand", "paper_cutter", "sign_painter")
COPYRIGHTS = ("flatland", "the_shapes")
METAS = ("highres", "scan", "commission", "flat_color")
RATINGS = ("g", "g", "g", "s", "q", "e")
_BATCH = 256


def general_tags(caption: Caption) -> list[str]:
    """What is seen, a tag a thing; the second of a relation says where it lies seen from it."""
    names = [str(thing).removeprefix("a ").removeprefix("an ") for thing in caption.things]
    if caption.relation:
        names[1] = f"{caption.relation} {names[1]}"
    return [name.replace(" ", "_") for name in names]


def sidecar(caption: Caption, number: int, seed: int) -> dict[str, object]:
    """What a booru would say of an image, by danbooru's names; artist, rating and score are invented."""
    draw = draw_of(seed, number, "sidecar")
    tags = {
        "general": general_tags(caption),
        "artist": [draw.choice(ARTISTS)],
        "copyright": [draw.choice(COPYRIGHTS)],
        "character": [],
        "meta": sorted(draw.sample(METAS, draw.randint(0, 2))),
    }
    said: dict[str, object] = {"id": number + 1, "rating": draw.choice(RATINGS), "score": round(draw.gauss(20, 15))}
    said |= {f"tag_string_{category}": " ".join(names) for category, names in tags.items()}
    return said | {"sentence": str(caption), "kind": caption.kind}


def draw_set(folder: Path, count: int, held_out: int, seed: int, side: int, log: Callable[[str], None]) -> None:
    """Write ``count`` pictures to ``folder``/train, and ``held_out`` of other compositions to ``folder``/held-out.

    The same seed gives the same files; a larger count begins with them. Written aside and renamed when whole.

    Raises:
        ConfigError: where the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"--out {folder}: exists; name a new folder.")
    aside = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    _draw(aside / "train", count, KINDS, seed, side, held_out=False)
    _draw(aside / "held-out", held_out, HELD_OUT_KINDS, seed, side, held_out=True)
    aside.replace(folder)
    log(f"{folder}: {count} pictures of {side} x {side} in train, {held_out} in held-out")


def _draw(folder: Path, count: int, kinds: tuple[Kind, ...], seed: int, side: int, *, held_out: bool) -> None:
    folder.mkdir(parents=True)
    key = (seed, "drawn", "held-out" if held_out else "train")
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        captions = [draw_caption(kinds[n % len(kinds)], draw_of(*key, n), held_out=held_out) for n in numbers]
        for n, caption, image in zip(numbers, captions, render(captions, (*key, first), side), strict=True):
            eight_bit_picture(image).save(folder / f"{n:06d}.png")
            text = json.dumps(sidecar(caption, n, seed), indent=1)
            (folder / f"{n:06d}.json").write_text(text + "\n", encoding="utf-8")
