"""Does an image show the objects, counts, colours and places that its prompt asks for, in GenEval's terms?

Prompts carry a line of GenEval's jsonl as their metadata: ``include``, a list of ``{"class", "count", "color",
"position": [relation, index of another entry]}``, and ``exclude``, a list of ``{"class", "count"}``. The rules are
those of its evaluation (Ghosh et al. 2023, arXiv 2310.11513); the detector is yours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.rewards.elsewhere.worker import Hosted, check_target

COLOURS = {
    "red": (220, 30, 30),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 160, 50),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
NEARLY = 0.1  # of both sizes together: a smaller offset counts as none


class Seen(NamedTuple):
    """A detection: box is left, top, right, bottom in pixels; ``colour`` where the detector names one."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    colour: str | None = None


def relations(one: Seen, other: Seen) -> set[str]:
    """Where ``one`` lies as seen from ``other``: of "left of", "right of", "above", "below".

    Offsets of the middles are shortened by a tenth of both sizes together, and the direction must then be at most 60
    degrees off the axis; up to two hold at once.
    """
    offsets, out = [], []
    for axis in (0, 1):
        a, b = ((seen.box[axis], seen.box[axis + 2]) for seen in (one, other))
        offset = (a[0] + a[1] - b[0] - b[1]) / 2
        slack = NEARLY * (abs(a[1] - a[0]) + abs(b[1] - b[0]))
        offsets.append(offset)
        out.append(math.copysign(max(abs(offset) - slack, 0), offset))
    length = math.hypot(*offsets)
    if max(abs(value) for value in out) < 1e-3:
        return set()
    names = (("left of", "right of"), ("above", "below"))
    return {names[axis][value > 0] for axis, value in enumerate(out) if abs(value) / length > 0.5}


def main_colour(image: Tensor, box: Sequence[float]) -> str:
    """The named colour nearest to most pixels of the middle half of a box, in an image ``[3, h, w]`` in [0, 1].

    A stand-in: GenEval asks CLIP. A detector that knows better names the colour itself.
    """
    height, width = image.shape[1:]
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = abs(right - left) / 4, abs(bottom - top) / 4
    rows = slice(*_inside(y - half_y, y + half_y, height))
    columns = slice(*_inside(x - half_x, x + half_x, width))
    pixels = image[:, rows, columns].reshape(3, -1).T.float() * 255
    known = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    votes = torch.cdist(pixels, known).argmin(1).bincount(minlength=len(known))
    return list(COLOURS)[int(votes.argmax())]


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), size - 1)
    return first, min(max(math.ceil(high), first + 1), size)


def requirements(image: Tensor, found: Sequence[Seen], metadata: Mapping[str, Any]) -> list[bool]:
    """Which of a prompt's requirements hold, one for each entry of ``include`` and of ``exclude``, in their order."""
    by_class: dict[str, list[Seen]] = {}
    for seen in sorted(found, key=lambda seen: -seen.score):
        by_class.setdefault(seen.label, []).append(seen)
    held: list[list[Seen] | None] = []
    for entry in metadata.get("include", []):
        mine = by_class.get(entry["class"], [])[: entry["count"]]
        holds = len(mine) == entry["count"]
        if holds and "color" in entry:
            holds = all((seen.colour or main_colour(image, seen.box)) == entry["color"] for seen in mine)
        if holds and "position" in entry:
            relation, other = entry["position"]
            others = held[other]
            holds = others is not None and all(relation in relations(a, b) for a in mine for b in others)
        held.append(mine if holds else None)
    few = [len(by_class.get(entry["class"], [])) < entry["count"] for entry in metadata.get("exclude", [])]
    return [mine is not None for mine in held] + few


@dataclass(kw_only=True)
class GenEval(Hosted):
    """Objects, counts, colours and positions as GenEval asks for them, over a detector of yours in a worker process.

    ``detector`` is file.py:function, ``detect(image) -> [(label, score, (left, top, right, bottom)), ...]``, with a
    colour as fourth where it knows one. Detections count from ``threshold`` on, ``counting`` where the prompt's tag is
    "counting". ``measure``: "strict" 1 where all holds, else 0; "share" of the requirements that hold.
    """

    detector: str
    threshold: float = 0.3
    counting: float = 0.9
    measure: Literal["strict", "share"] = "strict"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_target("detector", self.detector)
        for name in ("threshold", "counting"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def target(self) -> str:
        return self.detector

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        for prompt in prompts:
            check_metadata(prompt)
        every = [_detections(found) for found in self.values(images, prompts)]
        return torch.tensor([self._score(*row) for row in zip(images.float().cpu(), every, prompts, strict=True)])

    def _score(self, image: Tensor, found: Sequence[Seen], prompt: Prompt) -> float:
        least = self.counting if prompt.metadata.get("tag") == "counting" else self.threshold
        held = requirements(image, [seen for seen in found if seen.score > least], prompt.metadata)
        return float(all(held)) if self.measure == "strict" else sum(held) / len(held)


def check_metadata(prompt: Prompt) -> None:
    """Refuse a prompt without a line of GenEval's.

    Raises:
        ValueError: with the prompt and what is wrong with it.
    """
    include: Any = prompt.metadata.get("include", [])
    exclude: Any = prompt.metadata.get("exclude", [])
    try:
        entries: list[Any] = [*include, *exclude]
        good = bool(entries) and all(isinstance(e["class"], str) and type(e["count"]) is int for e in entries)
        places = [(number, e["position"]) for number, e in enumerate(include) if "position" in e]
        good &= all(type(other) is int and 0 <= other < number for number, (_, other) in places)
    except (TypeError, KeyError, ValueError):
        good = False
    if not good:
        raise ValueError(f'the prompt "{prompt.text}" has no line of GenEval\'s jsonl as metadata (include, exclude)')


def _detections(found: Any) -> list[Seen]:
    try:
        out = [
            Seen(str(label), float(score), (float(a), float(b), float(c), float(d)), *map(str, colour))
            for label, score, (a, b, c, d), *colour in found
        ]
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"its detector gave {found!r:.80}; [(label, score, (left, top, right, bottom)), ..] is wanted"
        ) from error
    if any(not math.isfinite(value) for seen in out for value in (seen.score, *seen.box)):
        raise RewardError(f"its detector gave a number that is none: {found!r:.80}")
    return out
