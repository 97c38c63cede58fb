"""GenEval's score: whether an image shows the objects, counts, colours and positions of its prompt.

The metadata of a prompt is a line of GenEval's jsonl: ``include``, a list of ``{"class", "count", "color",
"position": [relation, index of another entry]}``, and ``exclude``, a list of ``{"class", "count"}``. The rules are
those of its evaluation (Ghosh et al. 2023, arXiv 2310.11513); you provide the detector.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.rewards.elsewhere.worker import WorkerReward, check_target

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
TOLERANCE = 0.1  # as a share of both sizes together; a smaller offset counts as none


class Detection(NamedTuple):
    """A detected object; ``box`` is left, top, right, bottom in pixels; ``colour`` is optional."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    colour: str | None = None


def relations(one: Detection, other: Detection) -> set[str]:
    """The positions of ``one`` relative to ``other``, from "left of", "right of", "above" and "below".

    The offset of the centres is shortened by ``TOLERANCE`` times both sizes together on each axis, and its direction
    must then be at most 60 degrees off the axis; up to two relations hold at once.
    """
    offsets, out = [], []
    for axis in (0, 1):
        a, b = ((part.box[axis], part.box[axis + 2]) for part in (one, other))
        offset = (a[0] + a[1] - b[0] - b[1]) / 2
        slack = TOLERANCE * (abs(a[1] - a[0]) + abs(b[1] - b[0]))
        offsets.append(offset)
        out.append(math.copysign(max(abs(offset) - slack, 0), offset))
    length = math.hypot(*offsets)
    if max(abs(value) for value in out) < 1e-3:
        return set()
    names = (("left of", "right of"), ("above", "below"))
    return {names[axis][value > 0] for axis, value in enumerate(out) if abs(value) / length > 0.5}


def main_colour(image: Tensor, box: Sequence[float]) -> str:
    """The named colour nearest to most pixels of the middle half of a box, in an image ``[3, h, w]`` in [0, 1].

    A stand-in for the CLIP classifier of GenEval. A detector may return the colour itself.
    """
    height, width = image.shape[1:]
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    half_x, half_y = abs(right - left) / 4, abs(bottom - top) / 4
    rows = slice(*_inside(y - half_y, y + half_y, height))
    columns = slice(*_inside(x - half_x, x + half_x, width))
    pixels = image[:, rows, columns].reshape(3, -1).T.float() * 255
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    votes = torch.cdist(pixels, palette).argmin(1).bincount(minlength=len(palette))
    return list(COLOURS)[int(votes.argmax())]


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), size - 1)
    return first, min(max(math.ceil(high), first + 1), size)


def check_requirements(image: Tensor, detections: Sequence[Detection], metadata: Mapping[str, Any]) -> list[bool]:
    """Which of a prompt's requirements hold: one for each entry of ``include``, then of ``exclude``, in their order."""
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        by_class.setdefault(detection.label, []).append(detection)
    matches: list[list[Detection] | None] = []  # the detections that satisfy an entry, None if it does not hold
    for entry in metadata.get("include", []):
        candidates = by_class.get(entry["class"], [])[: entry["count"]]
        holds = len(candidates) == entry["count"]
        if holds and "color" in entry:
            holds = all((one.colour or main_colour(image, one.box)) == entry["color"] for one in candidates)
        if holds and "position" in entry:
            relation, other = entry["position"]
            others = matches[other]
            holds = others is not None and all(relation in relations(a, b) for a in candidates for b in others)
        matches.append(candidates if holds else None)
    excluded = [len(by_class.get(entry["class"], [])) < entry["count"] for entry in metadata.get("exclude", [])]
    return [match is not None for match in matches] + excluded


@dataclass(kw_only=True)
class GenEval(WorkerReward):
    """GenEval's requirements (objects, counts, colours, positions), checked on the output of your detector.

    ``detector`` is file.py:function, ``detect(image) -> [(label, score, (left, top, right, bottom)), ...]``, with a
    colour as an optional fourth entry and the box in pixels; it runs in a worker process. Detections count above a
    score of ``threshold``, or of ``counting`` if the prompt's tag is "counting". ``measure``: "strict" is 1 if all
    requirements hold, else 0; "share" is the share of them that hold.
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
        detections = [_read_detections(value) for value in self.values(images, prompts)]
        rows = zip(images.float().cpu(), detections, prompts, strict=True)
        return torch.tensor([self._score(*row) for row in rows])

    def _score(self, image: Tensor, detections: Sequence[Detection], prompt: Prompt) -> float:
        threshold = self.counting if prompt.metadata.get("tag") == "counting" else self.threshold
        certain = [detection for detection in detections if detection.score > threshold]
        requirements = check_requirements(image, certain, prompt.metadata)
        return float(all(requirements)) if self.measure == "strict" else sum(requirements) / len(requirements)


def check_metadata(prompt: Prompt) -> None:
    """Refuse a prompt whose metadata is not a line of GenEval's jsonl.

    Raises:
        ValueError: if ``include`` and ``exclude`` are both empty, or malformed; the message names the prompt.
    """
    include: Any = prompt.metadata.get("include", [])
    exclude: Any = prompt.metadata.get("exclude", [])
    try:
        entries: list[Any] = [*include, *exclude]
        valid = bool(entries) and all(isinstance(e["class"], str) and type(e["count"]) is int for e in entries)
        positions = [(number, e["position"]) for number, e in enumerate(include) if "position" in e]
        valid &= all(type(other) is int and 0 <= other < number for number, (_, other) in positions)
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f'the prompt "{prompt.text}" has no line of GenEval\'s jsonl as metadata (include, exclude)')


def _read_detections(value: Any) -> list[Detection]:
    try:
        detections = [
            Detection(str(label), float(score), (float(a), float(b), float(c), float(d)), *map(str, colour))
            for label, score, (a, b, c, d), *colour in value
        ]
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"its detector returned {value!r:.80} instead of [(label, score, (left, top, right, bottom)), ..]"
        ) from error
    if not all(math.isfinite(number) for one in detections for number in (one.score, *one.box)):
        raise RewardError(f"its detector returned NaN or an infinity: {value!r:.80}")
    return detections
