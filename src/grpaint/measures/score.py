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


def with_deployment(line: Line, deployed: Line) -> dict[str, Any]:
    """Return an evaluation's line with the line of the same model as ``[deploy]`` uses it, under ``deploy``.

    Where pictures have no score, both have the denoising loss, which is one of the model in training.
    """
    name = score_name(deployed)
    return {**line, "deploy": {**deployed, **({} if name in deployed else {name: line[name]})}}


def deciding_line(line: Line) -> dict[str, Any]:
    """Return the part of an evaluation's line that decides which checkpoint is best: as deployed, if it says so."""
    deployed = line.get("deploy")
    return {"iteration": line["iteration"], **deployed} if deployed else dict(line)


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
