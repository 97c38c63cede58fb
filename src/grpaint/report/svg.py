"""The curves of a comparison as SVG files, which markdown shows: drawn by matplotlib, the same bytes each time."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from grpaint.core.errors import MissingExtra
from grpaint.core.text import printable
from grpaint.measures.score import short_score
from grpaint.report.method_summary import COSTS, MethodSummary

# the series colours of static/style.css on a light page
COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#b35806", "#762a83", "#2a7f77", "#8c510a", "#c51b7d", "#4d4d4d", "#6a51a3")
STYLE = {
    "svg.hashsalt": "grpaint",  # names inside the file, else random
    "svg.fonttype": "none",  # text as text
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5a626b",
    "axes.grid": True,
    "grid.color": "#d8dde2",
    "legend.frameon": False,
}


def comparison_svg(summaries: Sequence[MethodSummary], cost: str) -> str:
    """Return an SVG file of the score against ``cost``, a key of ``COSTS``: mean and 95% interval over seeds.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("an SVG file of curves", "report") from None
    file, name = io.StringIO(), summaries[0].score
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts show the text
        mpl.rcdefaults()  # whatever matplotlibrc the user has
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        lines = [_draw_curve(axes, place, summary, cost) for place, summary in enumerate(summaries)]
        axes.set(xlim=(0, None), xlabel=COSTS[cost], ylabel=f"held-out {name}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: short_score(name, value))
        legend = figure.legend(lines, ["method"] * len(lines), loc="outside right upper")
        for text, summary in zip(legend.get_texts(), summaries, strict=True):
            text.set_parse_math(False)  # a $ in a name is a $
            text.set_text(printable(summary.method))
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw_curve(axes: Any, place: int, summary: MethodSummary, cost: str) -> Any:
    """Draw a method's line over its band; past the last colour the colours begin again, dashed."""
    curve, colour = summary.curve(cost), COLOURS[place % len(COLOURS)]
    axes.fill_between(curve.cost, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
    dashes = "-" if place < len(COLOURS) else "--"
    return axes.plot(curve.cost, curve.mean, color=colour, linewidth=1.6, linestyle=dashes)[0]
