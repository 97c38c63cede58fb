"""Curves of a comparison as SVG: a score against its cost, with intervals over seeds."""

from collections.abc import Callable, Sequence

from grpaint.measures.intervals import mean_interval
from grpaint.measures.score import comparable_score
from grpaint.report.method_summary import MethodSummary

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#35978f", "#8c510a", "#c51b7d", "#4d4d4d", "#6a51a3")
WIDTH, HEIGHT, LEFT, BOTTOM = 620, 330, 46, 34
COSTS = {"evaluations": "model evaluations", "cpu_s": "processor seconds, training", "reward_calls": "reward calls"}


def short_score(score: str, value: float) -> str:
    """A score in few digits, for axes and targets."""
    return f"{100 * value:.0f}%" if score == "strict" else f"{value:.3g}"


def _curve(summary: MethodSummary, cost: str) -> list[tuple[float, float, float, float]]:
    """(mean cost, mean score, interval low, interval high) at each evaluation that all seeds have."""
    count = min(len(record["scores"]) for record in summary.records)
    out = []
    for at in range(count):
        spent = [record["scores"][at][cost] for record in summary.records]
        out.append(
            (sum(spent) / len(spent), *mean_interval([comparable_score(r["scores"][at]) for r in summary.records]))
        )
    return out


def plot_curves(summaries: Sequence[MethodSummary], cost: str) -> str:
    """Return an SVG of the score against ``cost``, a key of ``COSTS``: mean and 95% interval over seeds."""
    curves = {summary.method: _curve(summary, cost) for summary in summaries}
    most = max((point[0] for curve in curves.values() for point in curve), default=1) or 1
    name = summaries[0].score if summaries else "strict"
    low = min((point[2] for curve in curves.values() for point in curve), default=0.0)
    high = max((point[3] for curve in curves.values() for point in curve), default=1.0)
    if name == "strict":  # a share
        low, high = max(0.0, low - 0.03), min(1.0, high + 0.03)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * value / most

    def y(value: float) -> float:
        return 8 + (HEIGHT - BOTTOM - 8) * (1 - (min(max(value, low), high) - low) / (high - low or 1))

    parts = _axes(x, y, most, (low, high), (COSTS[cost], name))
    for colour, curve in zip(method_colours(summaries), curves.values(), strict=True):
        band = [(x(p[0]), y(p[3])) for p in curve] + [(x(p[0]), y(p[2])) for p in reversed(curve)]
        line = [(x(p[0]), y(p[1])) for p in curve]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" fill-opacity=".12"/>')
        parts.append(f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(parts)}</svg>'
    )


def method_colours(summaries: Sequence[MethodSummary]) -> list[str]:
    """The colour of each method, the same in curves and legend."""
    return [COLOURS[place % len(COLOURS)] for place in range(len(summaries))]


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    most: float,
    ends: tuple[float, float],
    names: Sequence[str],
) -> list[str]:
    parts = [f'<path class="axis" d="M{LEFT},8 V{HEIGHT - BOTTOM} H{WIDTH - 10}"/>']
    for tick in range(5):
        cost, score = most * tick / 4, ends[0] + (ends[1] - ends[0]) * tick / 4
        label = f"{cost / 1000:.0f}k" if most >= 10_000 else f"{cost:.0f}"
        parts.append(f'<text x="{x(cost):.0f}" y="{HEIGHT - 18}" text-anchor="middle">{label}</text>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y(score) + 4:.0f}" text-anchor="end">{short_score(names[1], score)}</text>'
        )
    parts.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 4}" text-anchor="end">{names[0]}</text>')
    return parts
