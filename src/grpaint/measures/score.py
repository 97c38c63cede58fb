"""By which number an evaluation is judged: its data's own score, or the denoising loss where it has none."""

from collections.abc import Mapping
from typing import Any

Line = Mapping[str, Any]


def score_of(line: Line) -> str:
    """The name of the score in a line of evaluations.jsonl; lines from before it was written have ``strict``."""
    return str(line.get("score", "strict"))


def worth(line: Line) -> float:
    """The score, higher is better: a denoising loss is taken with a minus."""
    name = score_of(line)
    return -line[name] if name == "denoising_loss" else line[name]


def shown(name: str, value: float, *, sign: bool = False) -> str:
    """A score as a person reads it: a share in percent, everything else as the number it is."""
    mark = "+" if sign else ""
    return f"{100 * value:{mark}.1f}" if name == "strict" else f"{value:{mark}.4g}"


def unit(name: str) -> str:
    """What follows a shown score."""
    return "%" if name == "strict" else ""
