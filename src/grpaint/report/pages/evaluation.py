"""What an assessment shows a person: a table on the terminal, and one self-contained HTML page."""

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
from grpaint.report.pages.comparison import STYLE

Entry = Mapping[str, Any]

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


def _said(found: Entry | None, *, sign: bool = False, digits: int = 4) -> str:
    """A value and its interval."""
    if not found:
        return ""
    mark = "+" if sign and found["value"] >= 0 else ""
    ends = [_number(end, digits) for end in found.get("interval", ())]
    return mark + _number(found["value"], digits) + (f" [{', '.join(ends)}]" if ends else "")


def _title(entry: Entry) -> str:
    stands = f" for {entry['stands_for']}" if "stands_for" in entry else ""
    return f"{entry['measure']}{stands} {ARROWS[entry['better']]}".strip()


def terminal(result: Entry) -> list[Table]:
    """A table a protocol; below each value its difference from the first source. The page has all intervals."""
    out = []
    protocols = dict.fromkeys(entry["protocol"] for entry in result["measures"])
    for protocol in protocols:
        table = Table(title=_heading(result, protocol), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for name in result["sources"]:
            table.add_column(name, justify="right", min_width=10)
        for entry in (entry for entry in result["measures"] if entry["protocol"] == protocol):
            table.add_row(_title(entry), *(_number(entry["values"][name]["value"]) for name in result["sources"]))
            moved = [_said(entry["differences"].get(name), sign=True, digits=2) for name in result["sources"]]
            if any(moved):
                table.add_row("", *moved, style="dim")
        out.append(table)
    return out


def _heading(result: Entry, protocol: str) -> str:
    strength = f" from strength {result['strength']:g}" if protocol == "reconstruction" else ""
    return (
        f"{protocol.capitalize()}{strength}, {result['prompts']} prompts; below: minus {result['first']}, bootstrap 95%"
    )


def alarms(result: Entry) -> list[str]:
    """The alarms of reward hacking, in words."""
    return [
        f"{name}: reward hacking? against {result['first']}: {alarm_text(found)}"
        for name, found in result["hacking"].items()
    ]


def _cell(value: Entry, moved: Entry | None) -> str:
    """A value, its interval, and its difference from the first source."""
    lines = [_number(value["value"])]
    if "interval" in value:
        lines.append(f"[{', '.join(_number(end) for end in value['interval'])}]")
    if moved:
        lines.append(f"\u0394 {_said(moved, sign=True, digits=3)}")
    head, *rest = lines
    return f"<td>{head}{''.join(f'<span>{html.escape(line)}</span>' for line in rest)}</td>"


def _table(sources: Sequence[str], rows: Mapping[str, Entry]) -> str:
    """A column a source; ``rows`` have values and differences by title."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in sources)
    body = "".join(
        f"<tr><td>{html.escape(title)}</td>"
        + "".join(_cell(found["values"][name], found["differences"].get(name)) for name in sources)
        + "</tr>"
        for title, found in rows.items()
    )
    return f'<div class="wide"><table class="numbers"><tr><th></th>{head}</tr>{body}</table></div>'


def _protocol(result: Entry, protocol: str) -> str:
    strength = f" from strength {result['strength']:g}" if protocol == "reconstruction" else ""
    rows = {_title(entry): entry for entry in result["measures"] if entry["protocol"] == protocol}
    return f"<h2>{html.escape(protocol.capitalize())}{strength}</h2>{_table(list(result['sources']), rows)}"


def _categories(result: Entry) -> str:
    """The measures that have them, category by category."""
    out = []
    for entry in (entry for entry in result["measures"] if entry.get("by_category")):
        rows = {
            f"{kind} ({found['values'][result['first']]['images']})": found
            for kind, found in entry["by_category"].items()
        }
        title = f"{html.escape(_title(entry))}, {entry['protocol']}"
        out.append(f"<details><summary>{title}</summary>{_table(list(result['sources']), rows)}</details>")
    return "".join(out)


def _cards(result: Entry) -> str:
    return "".join(
        f"<details><summary>{html.escape(_title(entry))}, {entry['protocol']}</summary>"
        f"<pre>{html.escape(json.dumps(entry['card'], indent=1, ensure_ascii=False))}</pre></details>"
        for entry in result["measures"]
    )


def inlined(image: Tensor) -> str:
    """A picture ``[3, h, w]`` of bytes as the text of a data address, at least ``CELL`` pixels wide."""
    picture = eight_bit_picture(image)
    if picture.width < CELL:
        picture = picture.resize((CELL, CELL * picture.height // picture.width), Image.Resampling.NEAREST)
    return png_data_url(picture, optimize=True)


def _pictures(rows: Mapping[str, Tensor], captions: Sequence[str]) -> str:
    """A row a source, a column a prompt."""
    lines = [
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f'<td><img alt="{html.escape(name)}" src="{inlined(image)}"></td>' for image in images)
        + "</tr>"
        for name, images in rows.items()
    ]
    foot = "".join(f'<td class="caption">{html.escape(caption)}</td>' for caption in captions)
    return f'<div class="wide"><table class="rows">{"".join(lines)}<tr><td></td>{foot}</tr></table></div>'


def page(result: Entry, shown: Mapping[str, Mapping[str, Tensor]], captions: Sequence[str]) -> str:
    """The whole page; ``shown`` has the pictures of each protocol by source."""
    protocols = dict.fromkeys(entry["protocol"] for entry in result["measures"])
    tables = "".join(_protocol(result, name) for name in protocols)
    pictures = "".join(
        f"<h3>{protocol.capitalize()}</h3>{_pictures(rows, captions)}" for protocol, rows in shown.items()
    )
    alarm = "".join(f'<p class="alarm">{html.escape(line)}</p>' for line in alarms(result))
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
