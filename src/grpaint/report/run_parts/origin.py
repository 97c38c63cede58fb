"""What a run was made from and what it cost, and the commands that go on from it."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import tomli_w

from grpaint.core.text import printable
from grpaint.report.run_parts.standing import duration, moment, spent_s
from grpaint.report.run_record import RunRecord

EXAMPLE = "a caption of yours"


def recipe_text(record: RunRecord) -> str:
    """Return the settings as TOML."""
    return tomli_w.dumps(dict(record.settings))


def changed_settings(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the settings in which the run differs from the packaged recipe: key, packaged value, the run's."""
    return [(key, setting_text(packaged), setting_text(own)) for key, packaged, own in record.changes]


def setting_text(value: Any) -> str:
    """Return a setting as TOML spells it, in one line; "-" for none."""
    match value:
        case None:
            return "-"
        case list() | tuple():
            return f"[{', '.join(map(setting_text, value))}]"
        case dict():
            return f"{{ {', '.join(f'{key} = {setting_text(item)}' for key, item in value.items())} }}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def facts_table(record: RunRecord) -> list[tuple[str, str]]:
    """Return versions, machine, times and cost as rows of names and values."""
    facts, last = record.facts, record.metrics[-1] if record.metrics else {}
    versions = facts.get("versions")
    start, end = moment(facts.get("start")), moment(facts.get("end"))
    rows: dict[str, Any] = {
        "command": _command(facts.get("command")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        if isinstance(versions, dict)
        else None,
        "commit": facts.get("commit"),
        "device": _joined([facts.get("device"), facts.get("precision"), _threads(facts.get("threads"))]),
        "processes": facts.get("processes"),
        "began": f"{start:%Y-%m-%d %H:%M} UTC" if start else None,
        "ended": f"{end:%Y-%m-%d %H:%M} UTC" if end else None,
        "training time": duration(sum(map(spent_s, record.metrics))) if record.metrics else None,
        "processor time": duration(sum(line.get("time/cpu_s", 0.0) for line in record.metrics)) if last else None,
        "model evaluations of training": _count(last.get("cost/model_evaluations")),
        "model evaluations of evaluations": _count(last.get("cost/evaluation_model_evaluations")),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _command(words: Any) -> str | None:
    return shlex.join(map(str, words)) if isinstance(words, list) else None


def _threads(count: Any) -> str | None:
    return f"{count} thread{'s' if count != 1 else ''}" if count else None


def _joined(parts: Sequence[Any]) -> str:
    return ", ".join(str(part) for part in parts if part)


def _count(number: Any) -> str | None:
    return f"{number:,.0f}" if isinstance(number, int | float) else None


def next_commands(record: RunRecord) -> list[tuple[str, str]]:
    """Return what one may do with the run: a heading and a command for a shell each.

    The run's name and its captions are foreign text: they are quoted, and there are no commands for a name with
    characters that do not print, which a terminal would obey when they are pasted. A caption that would be taken for an
    option is not shown.
    """
    run = str(PurePath(record.path))
    if printable(run) != run:
        return []
    captions = [caption for drawing in record.drawings[-1:] for caption in drawing.captions[:1]]
    caption = next((text for text in captions if printable(text) == text and not text.startswith("-")), EXAMPLE)
    parent = str(PurePath(run).parent)
    resume = [
        "grpaint",
        "sft" if record.supervised else "train",
        "--runs",
        parent,
        f"--name={PurePath(run).name}",
        "--resume",
    ]
    if isinstance(record.facts.get("processes"), int):
        resume += ["--processes", str(record.facts["processes"])]
    if record.facts.get("status") == "finished":
        limits = record.settings.get("train", {})
        for key in ("iterations", "evaluations"):
            if isinstance(limits.get(key), int) and limits[key]:
                resume += ["--set", f"train.{key}={2 * limits[key]}"]
    return [
        ("Resume", shlex.join(resume)),
        ("Sample", shlex.join(["grpaint", "sample", run, caption])),
        ("Evaluate against its base", shlex.join(["grpaint", "evaluate", f"{run}:base", run])),
        ("Export", shlex.join(["grpaint", "export", run, "--for", "diffusers"])),
        ("Write this page anew", shlex.join(["grpaint", "report", run])),
    ]
