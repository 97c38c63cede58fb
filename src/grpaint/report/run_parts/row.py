"""A run as a row of the table of runs: a few numbers and their texts."""

import math
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from grpaint.measures.score import comparable_score, deciding_line, score_name, score_text, score_unit
from grpaint.report.run_parts.standing import lateness, moment, score_change, status_label
from grpaint.report.run_record import RunRecord


def run_row(record: RunRecord, stamp: str) -> dict[str, Any]:
    """Return the row of an outline or a whole record; ``stamp`` changes whenever the run's files do."""
    label, tone = status_label(record)
    if lateness(record):
        label, tone = "Silent", "warn"
    return {
        "name": record.name,
        "address": run_address(record.name),
        "stamp": stamp,
        "state": label.lower(),
        "label": label,
        "tone": tone,
        "method": method_name(record),
        "done": record.done,
        "total": record.iterations,
        "score": _score(record),
        "cost": _cost(record),
        "alarm": _alarm(record),
        "began": moment_ms(record.facts.get("start")),
        "notes": list(record.notes),
    }


def run_address(name: str) -> str:
    """Return the address of a run's page, relative to the table's."""
    return f"run/{quote(name, safe='')}/"


def method_name(record: RunRecord) -> str:
    """Return the last part of the recipe that the run began from, or what its settings say of its method."""
    if record.packaged:
        return PurePath(record.packaged).name.removesuffix(".toml")
    objective = record.settings.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else None
    return kind if isinstance(kind, str) else str(record.settings.get("stage", "-"))


def moment_ms(text: Any) -> float | None:
    """Return a time of run.json in milliseconds since 1970."""
    time = moment(text)
    return time.timestamp() * 1000 if time else None


def _score(record: RunRecord) -> dict[str, Any] | None:
    """Return the score that chooses checkpoints and its change from the base: texts, and numbers to sort by."""
    if not record.evaluations:
        return None
    line, base = deciding_line(record.evaluations[-1]), record.base and deciding_line(record.base)
    name = score_name(line)
    change, tone = "", ""
    if base and base["iteration"] != line["iteration"] and score_name(base) == name:
        change, tone, _ = score_change(base, line)
    value = comparable_score(line)
    return {
        "name": name.replace("_", " "),
        "iteration": line["iteration"],
        "value": value if math.isfinite(value) else None,
        "text": f"{score_text(name, line[name])}{score_unit(name)}",
        "gain": value - comparable_score(base) if change and base else None,
        "change": change,
        "tone": tone,
    }


def _cost(record: RunRecord) -> float | None:
    cost = record.metrics[-1].get("cost/model_evaluations") if record.metrics else None
    return cost if isinstance(cost, int | float) and math.isfinite(cost) else None


def _alarm(record: RunRecord) -> dict[str, Any] | None:
    alarm = record.facts.get("hacking")
    if not alarm:
        return None
    now = bool(record.evaluations) and "hacking" in record.evaluations[-1]
    return {"began": alarm["began"], "now": now}
