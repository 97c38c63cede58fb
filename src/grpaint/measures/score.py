"""The number that judges an evaluation: the data's own score, or the denoising loss if the data has none."""

from collections.abc import Mapping
from typing import Any

Line = Mapping[str, Any]  # one evaluation: a line of evaluations.jsonl
LOWER_IS_BETTER = ("fid", "kid", "background", "patch_energy", "image/grid_energy", "denoising_loss")


def score_name(line: Line) -> str:
    """The name of an evaluation's score; "strict" in lines written before the name was recorded."""
    return str(line.get("score", "strict"))


def comparable_score(line: Line) -> float:
    """The score as a number of which higher is better: a denoising loss is negated."""
    name = score_name(line)
    return -line[name] if name == "denoising_loss" else line[name]


def score_text(name: str, value: float, *, sign: bool = False) -> str:
    """A score for tables and logs: a share in percent without its unit, any other score to 4 digits."""
    mark = "+" if sign else ""
    return f"{100.0 * value:{mark}.1f}" if name == "strict" else f"{value:{mark}.4g}"


def score_unit(name: str) -> str:
    """The unit to print after :func:`score_text`: "%" or nothing."""
    return "%" if name == "strict" else ""


def short_score(name: str, value: float) -> str:
    """A score in few digits with its unit, for axes and targets."""
    return f"{100 * value:.0f}%" if name == "strict" else f"{value:.3g}"
