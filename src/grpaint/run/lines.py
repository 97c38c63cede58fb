"""The .jsonl files of a run: one JSON object in a line, with the iteration that it is about."""

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable
from grpaint.measures.line_check import is_number, unlike_a_drawing, unlike_an_evaluation
from grpaint.storage.atomic import write_atomic
from grpaint.storage.reading import decode_text, parse_object, read_end_lines, read_regular

METRICS, EVALUATIONS, PICTURES = "metrics.jsonl", "evaluations.jsonl", "pictures.jsonl"
_COSTS = {"cost/model_evaluations", "cost/reward_calls", "time/cpu_s"}

Line = dict[str, Any]


@dataclass(frozen=True)
class _Stored:
    """A line as it is in the file; ``values`` is None where it is damaged, for ``reason``."""

    number: int
    raw: bytes
    values: Line | None
    reason: str = ""

    @property
    def iteration(self) -> int | None:
        return self.values["iteration"] if self.values else None


def _stored(file: Path) -> list[_Stored]:
    """Return the complete lines of a file but blank ones; a last line that a kill cut short is left out."""
    if not file.exists():
        return []
    out = []
    for number, raw in enumerate(read_regular(file).split(b"\n")[:-1], 1):
        if not raw.strip():
            continue
        try:
            out.append(_Stored(number, raw, _parse(raw, file, number)))
        except ConfigError as error:
            out.append(_Stored(number, raw, None, str(error).removeprefix(f"{file}:{number}: ").rstrip(".")))
    return out


def _parse(raw: bytes, file: Path, number: int) -> Line:
    """Parse a line of a run.

    Raises:
        ConfigError: it is no JSON object, or it lacks what every such line has.
    """
    try:
        text = decode_text(raw, str(file))
    except ConfigError:
        raise ConfigError("not UTF-8.") from None
    line = parse_object(text, str(file), number)
    if not isinstance(line.get("iteration"), int) or isinstance(line["iteration"], bool):
        raise ConfigError("without a number iteration.")
    if file.name == EVALUATIONS:
        wrong = unlike_an_evaluation(line)
    elif file.name == PICTURES:
        wrong = unlike_a_drawing(line)
    else:
        costs = {"cost/model_evaluations": None, **{key: line[key] for key in _COSTS & line.keys()}}
        wrong = next((key for key, value in costs.items() if not is_number(value)), "")
    if wrong:
        key = printable(wrong, 80)
        raise ConfigError(f"{key} is not what a run writes" if wrong in line else f"without a number {key}.")
    return line


def _damage(lines: list[_Stored]) -> str:
    """Name damaged lines and why the first of them is."""
    numbers = ", ".join(str(line.number) for line in lines[:10]) + (", .." if len(lines) > 10 else "")
    return f"line{'s' if len(lines) > 1 else ''} {numbers} damaged ({lines[0].reason})"


def whole_lines(file: Path) -> tuple[list[Line], str]:
    """Return the whole lines of a file, and a text that says which are damaged and left out; empty if none is."""
    lines = _stored(file)
    damaged = [line for line in lines if line.values is None]
    return [line.values for line in lines if line.values is not None], _damage(damaged) if damaged else ""


def end_lines(file: Path) -> list[Line]:
    """Return the first and the last line of a file, of which nothing else is read; one if they are the same, or none.

    Raises:
        ConfigError: the file cannot be read, or one of them is damaged.
    """
    if not file.exists():
        return []
    lines = [_parse(raw, file, 1) for raw in read_end_lines(file) if raw.strip()]
    return lines[:1] if len(lines) > 1 and lines[0] == lines[1] else lines


def read_lines(file: Path) -> list[Line]:
    """Return the whole lines of a file; damaged ones are left out, and a logged line says which."""
    lines, damage = whole_lines(file)
    if damage:
        logging.getLogger(__name__).warning("grpaint: %s: %s, left out.", file, damage)
    return lines


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Append a line; a last line that was cut short is ended first.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(line).encode() + b"\n"
    try:
        with file.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                text = text if stream.read(1) == b"\n" else b"\n" + text
            stream.write(text)
    except OSError as error:
        error.filename = error.filename or str(file)  # a full disk is told without one
        raise


def cut_lines(file: Path, iteration: int) -> None:
    """Remove the lines after ``iteration`` (-1: all), as if the run had stopped there.

    Damaged lines among the earlier ones are removed too: a logged line says which, and the file as it was is kept as
    NAME.damaged.
    """
    earlier, damaged, passed = [], [], iteration < 0
    for line in _stored(file):
        if line.iteration is not None:
            passed |= line.iteration >= iteration
            if line.iteration <= iteration:
                earlier.append(line)
        elif not passed:
            damaged.append(line)
    note = ""
    if damaged:
        note = f"{_damage(damaged)}, left out; the file as it was is {set_aside(file).name}"
    elif file.name == METRICS and (
        lacking := sorted({*range(1, iteration + 1)} - {line.iteration for line in earlier})
    ):
        note = f"there is no line of iteration {', '.join(map(str, lacking[:10]))}"
    if note:
        logging.getLogger(__name__).warning("grpaint: %s: %s. The run is not harmed, its curve has a gap.", file, note)
    write_atomic(file, b"".join(line.raw + b"\n" for line in earlier))


def set_aside(file: Path) -> Path:
    """Copy a damaged file to NAME.damaged, or to NAME.damaged-2 and so on, and return the copy."""
    copy = file.with_name(f"{file.name}.damaged")
    number = 1
    while copy.exists():
        number += 1
        copy = file.with_name(f"{file.name}.damaged-{number}")
    write_atomic(copy, read_regular(file))
    return copy


def sync_lines(file: Path) -> None:
    """Flush a file's lines to the disk, so that no checkpoint outlives the lines before it."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
        os.fsync(stream.fileno())
