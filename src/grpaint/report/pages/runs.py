"""The page of all runs: a table that is sorted, filtered, and followed while runs go on."""

from collections.abc import Sequence
from typing import Any

from grpaint.report.pages.template import render


def runs_page(rows: Sequence[dict[str, Any]], folder: str) -> str:
    """Return the page as HTML; ``rows`` are those of :func:`~grpaint.report.run_parts.row.run_row`."""
    return render(
        "runs.html",
        scripts=("cells.js", "live.js", "runs.js"),
        styles=("runs.css",),
        data={"rows": list(rows)},
        live=True,
        folder=folder,
    )
