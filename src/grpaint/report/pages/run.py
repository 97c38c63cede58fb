"""The page of a run: where it stands, pictures over time, the last rollout, curves, scores by prompt, its recipe."""

from collections.abc import Mapping
from datetime import UTC, datetime

from grpaint.report.pages.template import CHART_STYLES, CHARTS, render
from grpaint.report.run_parts.curves import curve_data
from grpaint.report.run_parts.filmstrip import filmstrip, rollout_groups
from grpaint.report.run_parts.origin import changed_settings, facts_table, next_commands, recipe_text
from grpaint.report.run_parts.score_map import kind_rows, score_map
from grpaint.report.run_parts.standing import standing_cards, status_label
from grpaint.report.run_record import RunRecord

SCRIPTS = (*CHARTS, "viewer.js", "filmstrip.js", "rollout.js", "heatmap.js", "run.js")


def run_page(record: RunRecord, inline: Mapping[str, str] | None = None) -> str:
    """Return the page as HTML, to be written into the run folder.

    ``inline`` maps pictures, by their path from the run folder, to ``data:`` URLs, for a page that is one file; a
    picture that it lacks is left out. Without it the page loads them from the folder.
    """
    scores, film = score_map(record), filmstrip(record.drawings, inline)
    groups = rollout_groups(record.rollout, inline)
    label, tone = status_label(record)
    data = {
        "film": film,
        "groups": groups,
        "curves": curve_data(record),
        "map": scores.data if scores else None,
    }
    return render(
        "run.html",
        scripts=SCRIPTS,
        styles=(*CHART_STYLES, "run.css"),
        data=data,
        record=record,
        status=label,
        tone=tone,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        cards=standing_cards(record),
        film=film,
        groups=groups,
        scores=scores,
        kinds=kind_rows(record),
        facts=facts_table(record),
        changes=changed_settings(record),
        recipe=recipe_text(record),
        commands=next_commands(record),
    )
