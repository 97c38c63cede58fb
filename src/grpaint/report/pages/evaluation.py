"""The result of ``grpaint evaluate`` of several models: tables on the terminal, and one self-contained HTML page."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from grpaint.images.encoding import eight_bit_picture, png_data_url
from grpaint.measures.hacking import alarm_text
from grpaint.report.figures import CELL
from grpaint.report.pages.style import STYLE

Measure = Mapping[str, Any]  # an item of the result's "measures"
Result = Mapping[str, Any]
Value = Mapping[str, Any]  # value, interval, images

ARROWS = {"higher": "\u2191", "lower": "\u2193", None: ""}
PAGE_STYLE = (
    STYLE
    + """
.rows td { text-align: center; vertical-align: top; padding: .15rem; border: 0; }
.rows td:first-child { text-align: left; vertical-align: middle; white-space: nowrap; padding-right: .6rem; }
.rows img { width: 7rem; display: block; } .rows .caption { max-width: 7rem; font-size: .75rem; line-height: 1.2; }
.numbers td:not(:first-child) { text-align: right; white-space: nowrap; vertical-align: top; }
.numbers td:first-child { position: sticky; left: 0; background: Canvas; vertical-align: top; }
.numbers span { display: block; font-size: .75rem; opacity: .75; }
details { margin: .3rem 0; } summary { cursor: pointer; } pre { font-size: .8rem; overflow-x: auto; }
.alarm { border-left: .3rem solid #c33; padding-left: .8rem; }
"""
)


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
    strength = f" from strength {result['strength']:g}" if protocol == "reconstruction" else ""
    return (
        f"{protocol.capitalize()}{strength}, {result['prompts']} prompts; below: minus {result['first']}, bootstrap 95%"
    )


def alarm_lines(result: Result) -> list[str]:
    """One line for each source that raises the alarm of reward hacking."""
    return [
        f"{name}: reward hacking? against {result['first']}: {alarm_text(alarm)}"
        for name, alarm in result["hacking"].items()
    ]


def _cell(value: Value, difference: Value | None) -> str:
    """A table cell: a value, its interval, and its difference from the first source."""
    lines = [_number(value["value"])]
    if "interval" in value:
        lines.append(f"[{', '.join(_number(end) for end in value['interval'])}]")
    if difference:
        lines.append(f"\u0394 {_with_interval(difference, sign=True, digits=3)}")
    head, *rest = lines
    return f"<td>{head}{''.join(f'<span>{html.escape(line)}</span>' for line in rest)}</td>"


def _table(sources: Sequence[str], rows: Mapping[str, Measure]) -> str:
    """One column per source; ``rows`` maps titles to measures with values and differences."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in sources)
    body = "".join(
        f"<tr><td>{html.escape(title)}</td>"
        + "".join(_cell(measure["values"][name], measure["differences"].get(name)) for name in sources)
        + "</tr>"
        for title, measure in rows.items()
    )
    return f'<div class="wide"><table class="numbers"><tr><th></th>{head}</tr>{body}</table></div>'


def _protocol(result: Result, protocol: str) -> str:
    strength = f" from strength {result['strength']:g}" if protocol == "reconstruction" else ""
    rows = {_title(entry): entry for entry in result["measures"] if entry["protocol"] == protocol}
    return f"<h2>{html.escape(protocol.capitalize())}{strength}</h2>{_table(list(result['sources']), rows)}"


def _categories(result: Result) -> str:
    """A folded table by category for each measure that has categories."""
    out = []
    for entry in (entry for entry in result["measures"] if entry.get("by_category")):
        rows = {
            f"{kind} ({measure['values'][result['first']]['images']})": measure
            for kind, measure in entry["by_category"].items()
        }
        title = f"{html.escape(_title(entry))}, {entry['protocol']}"
        out.append(f"<details><summary>{title}</summary>{_table(list(result['sources']), rows)}</details>")
    return "".join(out)


def _cards(result: Result) -> str:
    return "".join(
        f"<details><summary>{html.escape(_title(entry))}, {entry['protocol']}</summary>"
        f"<pre>{html.escape(json.dumps(entry['card'], indent=1, ensure_ascii=False))}</pre></details>"
        for entry in result["measures"]
    )


def _data_url(image: Tensor) -> str:
    """A picture, uint8 ``[3, h, w]``, as a PNG in a ``data:`` URL, at least ``CELL`` pixels wide."""
    picture = eight_bit_picture(image)
    if picture.width < CELL:
        picture = picture.resize((CELL, CELL * picture.height // picture.width), Image.Resampling.NEAREST)
    return png_data_url(picture, optimize=True)


def _pictures(rows: Mapping[str, Tensor], captions: Sequence[str]) -> str:
    """One row per source, one column per prompt."""
    lines = [
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f'<td><img alt="{html.escape(name)}" src="{_data_url(image)}"></td>' for image in images)
        + "</tr>"
        for name, images in rows.items()
    ]
    foot = "".join(f'<td class="caption">{html.escape(caption)}</td>' for caption in captions)
    return f'<div class="wide"><table class="rows">{"".join(lines)}<tr><td></td>{foot}</tr></table></div>'


def evaluation_page(result: Result, images: Mapping[str, Mapping[str, Tensor]], captions: Sequence[str]) -> str:
    """Return the page as HTML; ``images`` has uint8 ``[b, 3, h, w]`` by protocol and source."""
    protocols = dict.fromkeys(entry["protocol"] for entry in result["measures"])
    tables = "".join(_protocol(result, name) for name in protocols)
    pictures = "".join(
        f"<h3>{protocol.capitalize()}</h3>{_pictures(rows, captions)}" for protocol, rows in images.items()
    )
    alarm = "".join(f'<p class="alarm">{html.escape(line)}</p>' for line in alarm_lines(result))
    sources = html.escape(json.dumps(result["sources"], indent=1, ensure_ascii=False))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>grpaint: models evaluated</title>
<meta name="viewport" content="width=device-width"><style>{PAGE_STYLE}</style>
<h1>{html.escape(" / ".join(result["sources"]))}</h1>
<p>The same {result["prompts"]} held-out prompts and the same noise for each. Arrows say which way is better; \u0394 is
the difference from {html.escape(result["first"])}; intervals are bootstrap 95%, of differences over the same
prompts.</p>
{alarm}{tables}
<h2>Pictures</h2><p class="note">The same prompt and the same noise in each column.</p>{pictures}
<h2>By category</h2>{_categories(result)}
<h2>Cards</h2><p class="note">What each number was measured with.</p>{_cards(result)}
<details><summary>models</summary><pre>{sources}</pre></details>
</html>
"""
