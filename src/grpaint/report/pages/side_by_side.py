"""The page of several runs side by side: scores, curves on one chart, aligned pictures, settings that differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpaint.report.pages.template import CHART_STYLES, CHARTS, render
from grpaint.report.run_parts.curves import curve_data
from grpaint.report.run_parts.differences import (
    differing_settings,
    same_base,
    same_noise,
    score_against,
    shared_prompts,
)
from grpaint.report.run_parts.filmstrip import filmstrip
from grpaint.report.run_parts.row import run_row
from grpaint.report.run_record import RunRecord

SCRIPTS = (*CHARTS, "curves.js", "viewer.js", "cells.js", "live.js", "columns.js", "side-by-side.js")


def side_by_side_page(records: Sequence[RunRecord], stamps: Mapping[str, str]) -> str:
    """Return the page as HTML; ``stamps`` stand for the state of each run's files, by name."""
    data = side_by_side_data(records)
    return render(
        "side-by-side.html",
        scripts=SCRIPTS,
        styles=(*CHART_STYLES, "run.css", "runs.css", "side-by-side.css"),
        data=data | {"stamps": dict(stamps)},
        live=True,
        names=[record.name for record in records],
        noise=data["noise"],
        pictures=bool(data["prompts"]),
    )


def side_by_side_data(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what the page draws; ``noise`` is whether pictures of one number begin at the same noise."""
    return {
        "runs": [
            {
                "row": run_row(record, ""),
                "curves": curve_data(record),
                "film": filmstrip(record.drawings),
                "against": score_against(records[0], record) if place else None,
            }
            for place, record in enumerate(records)
        ],
        "noise": same_noise(records),
        "same_base": same_base(records),
        "prompts": shared_prompts(records),
        "settings": differing_settings(records),
    }
