"""The page of a comparison: one self-contained HTML file with tables, curves and pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grpaint.measures.intervals import bootstrap_interval, holm, mean_interval, paired_t
from grpaint.measures.score import comparable_score, score_name, score_text, score_unit, short_score
from grpaint.report.method_summary import COSTS, MethodSummary, Record, seed_differences, summarise_methods
from grpaint.report.pages.template import CHART_STYLES, CHARTS, render

SCORE_MEANINGS = {"strict": "the share of held-out prompts whose image shows everything asked for"}


class Table(NamedTuple):
    """The texts of a table; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def _score_heading(score: str) -> str:
    return f"held-out {score}{', %' if score_unit(score) else ''}"


def _score(name: str, values: Sequence[float], *, sign: bool = False) -> str:
    mean, low, high = (score_text(name, value, sign=sign) for value in mean_interval(values))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def _mean_ratio(summary: MethodSummary, name: str) -> str:
    """The mean over seeds of the last evaluation's measure divided by the first's."""
    ends = [(record["scores"][0].get(name), record["scores"][-1].get(name)) for record in summary.records]
    ratios = [last / first for first, last in ends if first and last is not None]
    return f"x {mean_interval(ratios)[0]:.2f}" if ratios else "-"


def _final_table(summaries: Sequence[MethodSummary]) -> Table:
    rows = [
        [
            s.method,
            str(len(s.seeds)),
            _score(s.score, s.final(s.score)),
            f"{mean_interval(s.final('soft'))[0]:.3f}" if "soft" in s.records[0]["scores"][-1] else "-",
            _mean_ratio(s, "background"),
            _mean_ratio(s, "patch_energy"),
            _mean_ratio(s, "denoising_loss"),
            f"{mean_interval([r['evaluations'] for r in s.records])[0]:,.0f}",
            f"{mean_interval([r['cpu_s'] for r in s.records])[0]:.0f}",
        ]
        for s in summaries
    ]
    scores = (_score_heading(summaries[0].score), "soft", "background", "patch energy", "denoising loss")
    return Table(("method", "seeds", *scores, "evaluations", "CPU s"), rows)


def _baseline_table(summaries: Sequence[MethodSummary], baseline: str) -> Table | None:
    """Final scores minus the baseline's, paired by seed, with tests; None before the baseline has a finished run."""
    base = next((s for s in summaries if s.method == baseline), None)
    if base is None:
        return None
    differences = {s.method: seed_differences(s, base) for s in summaries if s is not base}
    p_values = {method: paired_t(values) for method, values in differences.items() if len(values) > 1}
    adjusted_p = holm(p_values)
    rows = []
    for method, values in differences.items():
        tests = ["", "", ""]
        if method in p_values:
            low, high = (score_text(base.score, end, sign=True) for end in bootstrap_interval(values))
            tests = [f"[{low}, {high}]", f"{p_values[method]:.3f}", f"{adjusted_p[method]:.3f}"]
        rows.append([method, str(len(values)), _score(base.score, values, sign=True) if values else "", *tests])
    points = ", points" if base.score == "strict" else ""
    return Table(("method", "seeds", f"minus {baseline}{points}", "bootstrap 95%", "paired t, p", "Holm, p"), rows)


def _target_table(summaries: Sequence[MethodSummary], base: float, best: float) -> Table:
    """Mean cost to each target over the seeds that reached it, and how many did."""
    score = summaries[0].score
    targets = {short_score(score, target): target for target in (base + (best - base) * s for s in (0.5, 0.8, 1.0))}

    def cell(summary: MethodSummary, target: float) -> str:
        costs = [cost for cost in summary.cost_to(target, "evaluations") if cost is not None]
        share = f"{len(costs)}/{len(summary.seeds)}"
        return f"{sum(costs) / len(costs) / 1000:.0f}k ({share})" if costs else f"never (0/{len(summary.seeds)})"

    rows = [[s.method, *(cell(s, target) for target in targets.values())] for s in summaries]
    return Table(("method", *(f"to {target}" for target in targets)), rows)


def _base_sentence(records: Sequence[Record]) -> str:
    first = records[0]
    name = score_name(first["scores"][0])
    sentence = f"The base scores {score_text(name, first['scores'][0][name])}{score_unit(name)}"
    guided = first.get("base_guided")
    return (
        f"{sentence}; at its best guidance ({guided['guidance']:g}) {score_text(name, guided[name])}{score_unit(name)}."
        if guided
        else f"{sentence}."
    )


def _chart(summaries: Sequence[MethodSummary], cost: str) -> dict[str, Any]:
    """The chart of the score against a cost, as charts.js draws it."""
    name = summaries[0].score
    curves = {summary.method: summary.curve(cost) for summary in summaries}
    return {
        "title": f"Held-out {name} against {COSTS[cost]}",
        "note": "Mean and 95% interval over seeds.",
        "xLabel": COSTS[cost],
        "height": 360,
        "percent": bool(score_unit(name)),
        "series": [{"label": m, "x": c.cost, "y": c.mean, "low": c.low, "high": c.high} for m, c in curves.items()],
    }


def _results(records: Sequence[Record], baseline: str) -> dict[str, Any]:
    """What the template shows of at least one record."""
    summaries = summarise_methods(records)
    best = max(mean_interval([comparable_score(r["scores"][-1]) for r in summary.records])[0] for summary in summaries)
    name, used = summaries[0].score, [record["evaluations"] for record in records]
    return {
        "evaluations": f"{min(used):,} to {max(used):,}",
        "score_meaning": SCORE_MEANINGS.get(name, f"held-out {name}"),
        "base_sentence": _base_sentence(records),
        "final": _final_table(summaries),
        "against_baseline": _baseline_table(summaries, baseline),
        "targets": _target_table(summaries, comparable_score(records[0]["scores"][0]), best),
        "pictures": [
            {"method": s.method, "seed": s.seeds[0], "url": s.records[0]["pictures"]}
            for s in summaries
            if s.records[0].get("pictures")
        ],
        "data": {"charts": [_chart(summaries, cost) for cost in COSTS]},
    }


def comparison_page(records: Sequence[Record], *, title: str, baseline: str, missing: Sequence[str]) -> str:
    """Return the page as HTML; ``missing`` names the runs that have not finished."""
    return render(
        "comparison.html",
        scripts=(*CHARTS, "comparison.js"),
        styles=CHART_STYLES,
        title=title,
        baseline=baseline,
        missing=missing,
        finished=bool(records),
        **(_results(records, baseline) if records else {}),
    )
