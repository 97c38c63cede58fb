"""The page of a comparison: one self-contained HTML file with tables, curves and pictures."""

import html
from collections.abc import Mapping, Sequence

from grpaint.measures.intervals import bootstrap_interval, holm, mean_interval, paired_t
from grpaint.measures.score import comparable_score, score_name, score_text, score_unit
from grpaint.report.method_summary import MethodSummary, Record, seed_differences, summarise_methods
from grpaint.report.pages.curves import COSTS, method_colours, plot_curves, short_score
from grpaint.report.pages.style import STYLE

SCORE_MEANINGS = {"strict": "the share of held-out prompts whose image shows everything asked for"}


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'


def _final_table(summaries: Sequence[MethodSummary]) -> str:
    rows = [
        [
            html.escape(s.method),
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
    return _table(("method", "seeds", *scores, "evaluations", "CPU s"), rows)


def _baseline_table(summaries: Sequence[MethodSummary], baseline: str) -> str:
    """Final scores minus the baseline's, paired by seed, with tests."""
    base = next((s for s in summaries if s.method == baseline), None)
    if base is None:
        return f'<p class="note">The baseline {html.escape(baseline)} has no finished run yet.</p>'
    differences = {s.method: seed_differences(s, base) for s in summaries if s is not base}
    p_values = {method: paired_t(values) for method, values in differences.items() if len(values) > 1}
    adjusted_p = holm(p_values)
    rows = []
    for method, values in differences.items():
        enough = method in p_values
        low, high = bootstrap_interval(values) if enough else (0.0, 0.0)
        rows.append(
            [
                html.escape(method),
                str(len(values)),
                _score(base.score, values, sign=True) if values else "",
                f"[{score_text(base.score, low, sign=True)}, {score_text(base.score, high, sign=True)}]"
                if enough
                else "",
                f"{p_values[method]:.3f}" if enough else "",
                f"{adjusted_p[method]:.3f}" if enough else "",
            ]
        )
    points = ", points" if base.score == "strict" else ""
    head = ("method", "seeds", f"minus {html.escape(baseline)}{points}", "bootstrap 95%", "paired t, p", "Holm, p")
    return _table(head, rows)


def _target_table(summaries: Sequence[MethodSummary], marks: Mapping[str, float]) -> str:
    """Mean cost to each target over the seeds that reached it, and how many did."""

    def cell(summary: MethodSummary, target: float) -> str:
        costs = [cost for cost in summary.cost_to(target, "evaluations") if cost is not None]
        share = f"{len(costs)}/{len(summary.seeds)}"
        return f"{sum(costs) / len(costs) / 1000:.0f}k ({share})" if costs else f"never (0/{len(summary.seeds)})"

    rows = [[html.escape(s.method), *(cell(s, target) for target in marks.values())] for s in summaries]
    return _table(("method", *(f"to {mark}" for mark in marks)), rows)


def _legend(summaries: Sequence[MethodSummary]) -> str:
    items = [
        f'<span><i style="background:{colour}"></i>{html.escape(s.method)}</span>'
        for colour, s in zip(method_colours(summaries), summaries, strict=True)
    ]
    return f'<p class="key">{"".join(items)}</p>'


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


def comparison_page(records: Sequence[Record], *, title: str, baseline: str, missing: Sequence[str]) -> str:
    """Return the page as HTML; ``missing`` names the runs that have not finished."""
    if not records:
        return f"<!doctype html><title>{html.escape(title)}</title><p>No run has finished yet.</p>"
    summaries = summarise_methods(records)
    best = max(mean_interval([comparable_score(r["scores"][-1]) for r in summary.records])[0] for summary in summaries)
    base, name = comparable_score(records[0]["scores"][0]), summaries[0].score
    marks = {
        short_score(name, target): target for target in (base + (best - base) * share for share in (0.5, 0.8, 1.0))
    }
    meaning = SCORE_MEANINGS.get(name, f"held-out {name}")
    used = [record["evaluations"] for record in records]
    absent = f"<p class='note'>Not finished yet: {html.escape(', '.join(missing))}.</p>" if missing else ""
    figures = "".join(
        f"<figure>{plot_curves(summaries, cost)}<figcaption>Held-out {name} against {spent}; mean and 95% interval "
        "over seeds.</figcaption></figure>"
        for cost, spent in COSTS.items()
    )
    pictures = "".join(
        f'<figure><img alt="before and after, {html.escape(s.method)}" src="{s.records[0]["pictures"]}">'
        f"<figcaption>{html.escape(s.method)}, seed {s.seeds[0]}: the same prompts and start noise, base above, "
        "trained below.</figcaption></figure>"
        for s in summaries
        if s.records[0].get("pictures")
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Every method from the same base, with the same prompts, at an equal number of model evaluations (a forward of one
sample is 1, a backward 2), or as near to it as whole iterations come: {min(used):,} to {max(used):,}. Score:
{meaning}, without guidance. {_base_sentence(records)} Intervals are over seeds (Student, 95%).</p>
{absent}
<h2>Final scores</h2>{_final_table(summaries)}
<p class="note">Background (its deviation from the true colour), patch energy (the mean square of what repeats there
with the model's patches) and denoising loss as multiples of the base's. CPU s: processor seconds of training,
evaluation apart.</p>
<h2>Against {html.escape(baseline)}</h2>{_baseline_table(summaries, baseline)}
<h2>Model evaluations to reach a score</h2>{_target_table(summaries, marks)}
<p class="note">Mean over the seeds that reached it, and how many did; at the resolution of the evaluations.</p>
<h2>Curves</h2>{_legend(summaries)}{figures}
<h2>Pictures</h2>{pictures}
</html>
"""
