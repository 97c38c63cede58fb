"""The pictures of a run for its page's scripts: held-out prompts over time, and the groups of the last rollout."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpaint.measures.score import LOWER_IS_BETTER
from grpaint.report.run_parts.score_map import thinned
from grpaint.report.run_record import DrawnPictures, Group, LastRollout

MOST_TIMES = 1000
Sources = Mapping[str, str] | None


def filmstrip(drawings: Sequence[DrawnPictures], inline: Sources = None) -> dict[str, Any] | None:
    """Return what the filmstrip draws: rows are prompts, ``times`` are columns; None without any picture.

    ``inline`` maps files to the addresses that stand for them; a file that it lacks is left out.
    """
    if not any(file for drawing in drawings for file in drawing.files):
        return None
    last = max(drawings, key=lambda drawing: len(drawing.captions))
    return {
        "score": drawings[-1].score,
        "lower": LOWER_IS_BETTER,
        "captions": last.captions,
        "kinds": last.kinds,
        "times": [
            {
                "iteration": drawing.iteration,
                "files": _addresses(drawing.files, inline),
                "scores": {name: list(map(_rounded, values)) for name, values in drawing.scores.items()},
            }
            for drawing in (drawings[place] for place in thinned(len(drawings), MOST_TIMES))
        ],
    }


def rollout_groups(rollout: LastRollout | None, inline: Sources = None) -> list[dict[str, Any]]:
    """Return the groups of the last rollout, members from the highest total to the lowest."""
    return [_group(group, inline) for group in rollout.groups] if rollout else []


def _group(group: Group, inline: Sources) -> dict[str, Any]:
    order = sorted(range(len(group.total)), key=lambda member: -_or_least(group.total[member]))
    files = _addresses(group.files, inline)
    return {
        "caption": group.caption,
        "kind": group.kind,
        "flat": not any(group.advantage),
        "members": [
            {
                "file": files[member],
                "total": _rounded(group.total[member]),
                "advantage": _rounded(group.advantage[member]),
                "rewards": {name: _rounded(values[member]) for name, values in group.rewards.items()},
            }
            for member in order
        ],
    }


def _addresses(files: Sequence[str | None], inline: Sources) -> list[str | None]:
    return list(files) if inline is None else [inline.get(file) if file else None for file in files]


def _or_least(value: float) -> float:
    return value if value == value else float("-inf")  # noqa: PLR0124 - reason: NaN, the one value unlike itself


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
