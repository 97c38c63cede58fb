"""The page of a run: where it stands, pictures over time, the last rollout, curves, scores by prompt, its recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from grpaint.report.pages.template import CHART_STYLES, CHARTS, render
from grpaint.report.run_parts.curves import curve_data
from grpaint.report.run_parts.filmstrip import filmstrip, rollout_groups
from grpaint.report.run_parts.origin import changed_settings, facts_table, next_commands, recipe_text
from grpaint.report.run_parts.score_map import PromptChange, ScoreMap, kind_rows, score_map
from grpaint.report.run_parts.standing import standing_cards, status_label
from grpaint.report.run_record import RunRecord

DRAWN = ("film", "groups", "curves", "map")  # what scripts draw of a page that does not change
SCRIPTS = (*CHARTS, "curves.js", "viewer.js", "filmstrip.js", "rollout.js", "heatmap.js", "run.js")
LIVE_SCRIPTS = (*SCRIPTS, "live.js", "follow.js")
Cell = Mapping[str, str]


def run_page(record: RunRecord, inline: Mapping[str, str] | None = None, *, stamp: str | None = None) -> str:
    """Return the page as HTML, to be written into the run folder.

    ``inline`` maps pictures, by their path from the run folder, to ``data:`` URLs, for a page that is one file; a
    picture that it lacks is left out. Without it the page loads them from the folder. With ``stamp``, which stands for
    the state of the run's files, the page is one of a server and follows the run by its :func:`run_data`.
    """
    live = stamp is not None
    data = run_data(record, inline, live=live)
    return render(
        "run.html",
        scripts=LIVE_SCRIPTS if live else SCRIPTS,
        styles=(*CHART_STYLES, "run.css"),
        data=data | {"live": {"stamp": stamp, "name": record.name}} if live else {name: data[name] for name in DRAWN},
        live=live,
        record=record,
        status=status_label(record),
        shown=data,
        changes=changed_settings(record),
        recipe=recipe_text(record),
        commands=next_commands(record),
    )


def run_data(record: RunRecord, inline: Mapping[str, str] | None = None, *, live: bool = True) -> dict[str, Any]:
    """Return what the page draws; ``parts`` says which of its parts there are, ``tables`` has rows of cells."""
    scores, film = score_map(record), filmstrip(record.drawings, inline)
    groups, kinds = rollout_groups(record.rollout, inline), kind_rows(record)
    tables = {
        "gains": _change_rows(scores.gains if scores else ()),
        "losses": _change_rows(scores.losses if scores else ()),
        "kinds": [[*map(_cell, row[:4]), _cell(row[4], better=row[5])] for row in kinds],
        "facts": [[_cell(name), _cell(value)] for name, value in facts_table(record)],
    }
    return {
        "film": film,
        "groups": groups,
        "curves": curve_data(record),
        "map": scores.data if scores else None,
        "done": record.done,
        "total": record.iterations,
        "cards": [asdict(card) for card in standing_cards(record, live=live)],
        "texts": _texts(record, groups, scores),
        "tables": tables,
        "parts": [film is not None, bool(groups), scores is not None, *map(bool, tables.values()), len(record.notes)],
    }


def _texts(record: RunRecord, groups: Sequence[Mapping[str, Any]], scores: ScoreMap | None) -> dict[str, str]:
    """Return sentences that change while the run goes on."""
    texts = {"written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    if record.rollout:
        flat = sum(group["flat"] for group in groups)
        some = len(groups) < record.rollout.prompts
        texts["rollout"] = f"Last rollout, iteration {record.rollout.iteration}"
        texts["prompts"] = f"The first {len(groups)} of {record.rollout.prompts} prompts." if some else ""
        texts["flat"] = (
            f"{flat} group{'s have' if flat > 1 else ' has'} no spread: every advantage is 0, and nothing is learned "
            f"from {'them' if flat > 1 else 'it'}."
            if flat
            else ""
        )
    if scores:
        counts = scores.counts
        texts["gained"] = (
            f"Of {counts['prompts']} prompts {counts['gained']} have gained against {scores.first} and "
            f"{counts['lost']} have lost."
        )
        texts["first"] = scores.first[0].upper() + scores.first[1:]
    return texts


def _cell(text: str, *, note: str = "", better: bool | None = None) -> Cell:
    return {"text": text, "note": note, "tone": "" if better is None else "up" if better else "down"}


def _change_rows(changes: Sequence[PromptChange]) -> list[list[Cell]]:
    return [
        [
            _cell(str(row.number), note=row.caption),
            _cell(row.before),
            _cell(row.after),
            _cell(row.change, better=row.better),
        ]
        for row in changes
    ]
