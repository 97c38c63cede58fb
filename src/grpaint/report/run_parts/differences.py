"""What tells runs apart: their settings, and their scores on the same held-out prompts."""

from collections.abc import Sequence
from typing import Any

from grpaint.measures.score import deciding_line, score_name
from grpaint.report.run_parts.origin import setting_text
from grpaint.report.run_parts.standing import score_change
from grpaint.report.run_record import RunRecord

NOISE = (("evaluate", "seed"), ("model", "kind"), ("model", "base"), ("model", "height"), ("model", "width"))
SAMPLED = ("seed", "steps", "sampler", "guidance", "tuned_share")  # of [evaluate]: what its pictures depend on
_MISSING = object()


def differing_settings(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return a row for each setting in which any run differs from the others: its key, then each run's value."""
    tables = [_flat(record.settings) for record in records]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = []
    for key in sorted(keys):
        values = [table.get(key, _MISSING) for table in tables]
        if any(value != values[0] for value in values):
            rows.append([key, *("-" if value is _MISSING else setting_text(value) for value in values)])
    return rows


def _flat(table: Any, key: str = "") -> dict[str, Any]:
    """Return the settings by dotted key; an empty table is a value."""
    if not isinstance(table, dict) or not table:
        return {key: table} if key else {}
    return {
        name: value
        for part, item in table.items()
        for name, value in _flat(item, f"{key}.{part}" if key else part).items()
    }


def same_noise(records: Sequence[RunRecord]) -> bool:
    """Return whether the held-out pictures of one number begin at the same noise in every run, as far as is known."""

    def decisive(record: RunRecord) -> list[Any]:
        tables = ((record.settings.get(table), key) for table, key in NOISE)
        return [table.get(key) if isinstance(table, dict) else None for table, key in tables]

    return all(record.settings and decisive(record) == decisive(records[0]) for record in records)


def same_base(records: Sequence[RunRecord]) -> bool:
    """Return whether the runs draw the same pictures before training, as far as their settings tell."""

    def decisive(record: RunRecord) -> list[Any]:
        evaluate = record.settings.get("evaluate")
        sampled = {key: evaluate.get(key) for key in SAMPLED} if isinstance(evaluate, dict) else None
        return [sampled, *(record.settings.get(key) for key in ("model", "data", "deploy"))]

    return all(record.settings and decisive(record) == decisive(records[0]) for record in records)


def score_against(first: RunRecord, other: RunRecord) -> dict[str, str] | None:
    """Return how the last score of ``other`` differs from that of ``first``: its text and tone; None if it cannot be.

    With a 95% interval over prompts if both were judged on the same prompts and noise.
    """
    if not (first.evaluations and other.evaluations):
        return None
    lines = [deciding_line(record.evaluations[-1]) for record in (first, other)]
    if score_name(lines[0]) != score_name(lines[1]):
        return None
    if not (first.captions and list(first.captions) == list(other.captions) and same_noise([first, other])):
        lines = [{key: value for key, value in line.items() if not key.endswith("_by_prompt")} for line in lines]
    text, tone, _ = score_change(*lines)
    return {"text": text, "tone": {"good": "up", "bad": "down"}.get(tone, "")}


def shared_prompts(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the held-out prompts of which two or more runs have pictures under the same number: the rows to align.

    The noise of a picture depends on its number, so equal captions at other numbers do not count. ``rows`` has each
    run's row, None where it lacks the prompt.
    """
    captions = [list(record.drawings[-1].captions) if record.drawings else [] for record in records]
    pairs = dict.fromkeys((number, text) for texts in captions for number, text in enumerate(texts))
    out = []
    for number, text in sorted(pairs):
        rows = [number if number < len(texts) and texts[number] == text else None for texts in captions]
        if sum(row is not None for row in rows) > 1:
            out.append({"number": number + 1, "caption": text, "rows": rows})
    return out
