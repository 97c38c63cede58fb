"""The score of every held-out prompt at every evaluation: what the map draws, and the tables beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.measures.score import score_name, score_text, score_unit
from grpaint.report.run_record import Line, RunRecord

MOST_COLUMNS = 200
EXTREMES = 10  # rows of the tables of gains and losses


@dataclass(frozen=True)
class PromptChange:
    """A held-out prompt's score at the base and now, as text; ``number`` counts from 1, ``caption`` may be empty."""

    number: int
    caption: str
    before: str
    after: str
    change: str
    better: bool


@dataclass(frozen=True)
class ScoreMap:
    """``data`` is for the script, the rest for the template; ``first`` names the evaluation that is compared with."""

    data: dict[str, Any]
    first: str
    counts: dict[str, int]
    gains: Sequence[PromptChange]
    losses: Sequence[PromptChange]


def thinned(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def comparable_evaluations(evaluations: Sequence[Line]) -> list[Line]:
    """Return the evaluations with the last one's score by prompt, over as many prompts."""
    if not evaluations:
        return []
    key = f"{score_name(evaluations[-1])}_by_prompt"
    size = len(evaluations[-1].get(key, ()))
    return [line for line in evaluations if size and len(line.get(key, ())) == size]


def score_map(record: RunRecord) -> ScoreMap | None:
    """Return the map; None if no two evaluations have the score by prompt."""
    lines = comparable_evaluations(record.evaluations)
    if len(lines) < 2:
        return None
    score = score_name(lines[-1])
    columns = [line[f"{score}_by_prompt"] for line in lines]
    first, last = columns[0], columns[-1]
    binary = all(value in (0, 1) for column in columns for value in column)
    shown = thinned(len(lines), MOST_COLUMNS)
    captions = list(record.captions[: len(last)])
    data = {
        "score": score,
        "binary": binary,
        "iterations": [lines[column]["iteration"] for column in shown],
        "rows": [[_cell(columns[column][row], binary) for column in shown] for row in range(len(last))],
        "captions": captions,
        "kinds": _by_kind(lines, shown, score),
        "left_out": len(lines) - len(shown),
    }
    gains = sorted((row for row in range(len(last)) if last[row] > first[row]), key=lambda row: first[row] - last[row])
    losses = sorted((row for row in range(len(last)) if last[row] < first[row]), key=lambda row: last[row] - first[row])

    def changes(rows: Sequence[int]) -> list[PromptChange]:
        return [_change(row, captions, score, first[row], last[row]) for row in rows[:EXTREMES]]

    counts = {"gained": len(gains), "lost": len(losses), "prompts": len(last)}
    start = lines[0]["iteration"]
    return ScoreMap(data, f"iteration {start}" if start else "the base", counts, changes(gains), changes(losses))


def _cell(value: float, binary: bool) -> float:
    return int(value) if binary else float(f"{value:.4g}")


def _by_kind(lines: Sequence[Line], shown: Sequence[int], score: str) -> dict[str, list[float | None]]:
    """Return the mean score of each category at the shown evaluations."""
    tables = [lines[column].get("by_kind", {}) for column in shown]
    return {
        kind: [_mean(table.get(kind, {}).get(score)) for table in tables]
        for kind in tables[-1]
        if score in tables[-1][kind]
    }


def _mean(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _change(row: int, captions: Sequence[str], score: str, before: float, after: float) -> PromptChange:
    return PromptChange(
        row + 1,
        captions[row] if row < len(captions) else "",
        f"{score_text(score, before)}{score_unit(score)}",
        f"{score_text(score, after)}{score_unit(score)}",
        score_text(score, after - before, sign=True),
        after > before,
    )


def kind_rows(record: RunRecord) -> list[tuple[str, str, str, str, str, bool]]:
    """Return the last evaluation by category: kind, prompts, the base's score, the score, the change, if none is lost.

    Empty without categories or a base.
    """
    if not record.base or len(record.evaluations) < 2:
        return []
    line, score = record.evaluations[-1], score_name(record.evaluations[-1])
    now, before = line.get("by_kind", {}), record.base.get("by_kind", {})
    unit = score_unit(score)
    return [
        (
            kind,
            f"{now[kind].get('prompts', 0):g}",
            f"{score_text(score, before[kind][score])}{unit}",
            f"{score_text(score, now[kind][score])}{unit}",
            score_text(score, now[kind][score] - before[kind][score], sign=True),
            now[kind][score] >= before[kind][score],
        )
        for kind in now
        if score in now[kind] and score in before.get(kind, {})
    ]
