"""The result of ``grpaint evaluate`` of several models: tables on the terminal, and one self-contained HTML page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from grpaint.images.encoding import eight_bit_picture, png_data_url
from grpaint.measures.hacking import alarm_text
from grpaint.report.figures import CELL
from grpaint.report.pages.template import render

Measure = Mapping[str, Any]  # an item of the result's "measures"
Result = Mapping[str, Any]
Value = Mapping[str, Any]  # value, interval, images

ARROWS = {"higher": "\u2191", "lower": "\u2193", None: ""}


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def _with_interval(value: Value | None, *, sign: bool = False, digits: int = 4) -> str:
    """A value and its interval as text; empty without a value."""
    if not value:
        return ""
    mark = "+" if sign and value["value"] >= 0 else ""
    ends = [_number(end, digits) for end in value.get("interval", ())]
    return mark + _number(value["value"], digits) + (f" [{', '.join(ends)}]" if ends else "")


def _title(measure: Measure) -> str:
    stands = f" for {measure['stands_for']}" if "stands_for" in measure else ""
    return f"{measure['measure']}{stands} {ARROWS[measure['better']]}".strip()


def measure_tables(result: Result) -> list[Table]:
    """One table per protocol, for the terminal; below each value its difference from the first source.

    Intervals of the values themselves are on the page only.
    """
    out = []
    protocols = dict.fromkeys(entry["protocol"] for entry in result["measures"])
    for protocol in protocols:
        table = Table(title=_heading(result, protocol), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for name in result["sources"]:
            table.add_column(name, justify="right", min_width=10)
        for entry in (entry for entry in result["measures"] if entry["protocol"] == protocol):
            table.add_row(_title(entry), *(_number(entry["values"][name]["value"]) for name in result["sources"]))
            differences = [
                _with_interval(entry["differences"].get(name), sign=True, digits=2) for name in result["sources"]
            ]
            if any(differences):
                table.add_row("", *differences, style="dim")
        out.append(table)
    return out


def _heading(result: Result, protocol: str) -> str:
    title = _protocol_title(result, protocol)
    return f"{title}, {result['prompts']} prompts; below: minus {result['first']}, bootstrap 95%"


def _protocol_title(result: Result, protocol: str) -> str:
    strength = f" from strength {result['strength']:g}" if protocol == "reconstruction" else ""
    return f"{protocol.capitalize()}{strength}"


def alarm_lines(result: Result) -> list[str]:
    """One line for each source that raises the alarm of reward hacking."""
    return [
        f"{name}: reward hacking? against {result['first']}: {alarm_text(alarm)}"
        for name, alarm in result["hacking"].items()
    ]


def _row(title: str, measure: Measure, sources: Iterable[str]) -> dict[str, Any]:
    """A row of a table: for each source a value, then its interval and its difference from the first source."""
    cells = []
    for name in sources:
        value, difference = measure["values"][name], measure["differences"].get(name)
        lines = [f"[{', '.join(_number(end) for end in value['interval'])}]"] if "interval" in value else []
        lines += [f"\u0394 {_with_interval(difference, sign=True, digits=3)}"] if difference else []
        cells.append({"value": _number(value["value"]), "lines": lines})
    return {"title": title, "cells": cells}


def _protocols(result: Result) -> list[dict[str, Any]]:
    """A table for each protocol."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in result["measures"]:
        rows.setdefault(entry["protocol"], []).append(_row(_title(entry), entry, result["sources"]))
    return [{"title": _protocol_title(result, protocol), "rows": lines} for protocol, lines in rows.items()]


def _categories(result: Result) -> list[dict[str, Any]]:
    """A table by category for each measure that has categories."""
    return [
        {
            "title": f"{_title(entry)}, {entry['protocol']}",
            "rows": [
                _row(f"{kind} ({measure['values'][result['first']]['images']})", measure, result["sources"])
                for kind, measure in entry["by_category"].items()
            ],
        }
        for entry in result["measures"]
        if entry.get("by_category")
    ]


def _data_url(image: Tensor) -> str:
    """A picture, uint8 ``[3, h, w]``, as a PNG in a ``data:`` URL, at least ``CELL`` pixels wide."""
    picture = eight_bit_picture(image)
    if picture.width < CELL:
        picture = picture.resize((CELL, CELL * picture.height // picture.width), Image.Resampling.NEAREST)
    return png_data_url(picture, optimize=True)


def _plain_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def evaluation_page(result: Result, images: Mapping[str, Mapping[str, Tensor]], captions: Sequence[str]) -> str:
    """Return the page as HTML; ``images`` has uint8 ``[b, 3, h, w]`` by protocol and source."""
    return render(
        "evaluation.html",
        sources=list(result["sources"]),
        prompts=result["prompts"],
        first=result["first"],
        alarms=alarm_lines(result),
        protocols=_protocols(result),
        captions=captions,
        pictures=[
            {
                "title": protocol.capitalize(),
                "rows": [{"source": name, "urls": [_data_url(image) for image in row]} for name, row in rows.items()],
            }
            for protocol, rows in images.items()
        ],
        categories=_categories(result),
        cards=[
            {"title": f"{_title(entry)}, {entry['protocol']}", "text": _plain_json(entry["card"])}
            for entry in result["measures"]
        ],
        models=_plain_json(result["sources"]),
    )
