"""The page of a comparison: one self-contained HTML file, its curves drawn as SVG."""

import html
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.measures.intervals import bootstrap_interval, holm, mean_interval, paired_t
from grpaint.measures.score import comparable_score, score_name, score_text, score_unit

Record = Mapping[str, Any]
COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#35978f", "#8c510a", "#c51b7d", "#4d4d4d", "#6a51a3")
WIDTH, HEIGHT, LEFT, BOTTOM = 620, 330, 46, 34
COSTS = {"evaluations": "model evaluations", "cpu_s": "processor seconds, training", "reward_calls": "reward calls"}

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } figcaption, .note { color: var(--soft); font-size: .9rem; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
svg .axis { stroke: currentColor; stroke-opacity: .35; fill: none; }
img { max-width: 100%; image-rendering: pixelated; }
.key span { display: inline-block; margin-right: 1.1rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.1rem; height: .25rem; margin-right: .35rem; vertical-align: middle; }
"""

WHAT = {"strict": "the share of held-out prompts whose image shows everything asked for"}


def _named(score: str) -> str:
    return f"held-out {score}{', %' if score_unit(score) else ''}"


def _mark(score: str, value: float) -> str:
    """A score where a digit less is enough."""
    return f"{100 * value:.0f}%" if score == "strict" else f"{value:.3g}"


@dataclass(frozen=True)
class Summary:
    """What the page says of a method: values by seed, in the order of ``seeds``."""

    method: str
    seeds: tuple[int, ...]
    records: tuple[Record, ...]

    @property
    def score(self) -> str:
        """The name of the score."""
        return score_name(self.records[0]["scores"][-1])

    def final(self, name: str) -> list[float]:
        """A score of the last evaluation, by seed."""
        return [record["scores"][-1][name] for record in self.records]

    def cost_to(self, target: float, cost: str) -> list[float | None]:
        """By seed, what was spent when the score first reached ``target``; None where it never did."""
        return [
            next((line[cost] for line in record["scores"] if comparable_score(line) >= target), None)
            for record in self.records
        ]


def summaries(records: Sequence[Record]) -> list[Summary]:
    """Records by method, best mean final score first."""
    by: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["seed"]):
        by[record["method"]].append(record)
    found = [Summary(method, tuple(r["seed"] for r in rows), tuple(rows)) for method, rows in by.items()]
    return sorted(found, key=lambda summary: -mean_interval(summary.final(summary.score))[0])


def differences(one: Summary, other: Summary) -> list[float]:
    """Final score of ``one`` minus that of ``other``, over the seeds that both have."""
    theirs = dict(zip(other.seeds, other.final(other.score), strict=True))
    return [mine - theirs[s] for s, mine in zip(one.seeds, one.final(one.score), strict=True) if s in theirs]


def _score(name: str, values: Sequence[float], *, sign: bool = False) -> str:
    mean, low, high = (score_text(name, value, sign=sign) for value in mean_interval(values))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def _times(summary: Summary, name: str) -> str:
    ends = [(record["scores"][0].get(name), record["scores"][-1].get(name)) for record in summary.records]
    ratios = [last / first for first, last in ends if first and last is not None]
    return f"x {mean_interval(ratios)[0]:.2f}" if ratios else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'


def _finals(found: Sequence[Summary]) -> str:
    rows = [
        [
            html.escape(s.method),
            str(len(s.seeds)),
            _score(s.score, s.final(s.score)),
            f"{mean_interval(s.final('soft'))[0]:.3f}" if "soft" in s.records[0]["scores"][-1] else "-",
            _times(s, "background"),
            _times(s, "patch_energy"),
            _times(s, "denoising_loss"),
            f"{mean_interval([r['evaluations'] for r in s.records])[0]:,.0f}",
            f"{mean_interval([r['cpu_s'] for r in s.records])[0]:.0f}",
        ]
        for s in found
    ]
    judged = (_named(found[0].score), "soft", "background", "patch energy", "denoising loss")
    return _table(("method", "seeds", *judged, "evaluations", "CPU s"), rows)


def _against(found: Sequence[Summary], baseline: str) -> str:
    base = next((s for s in found if s.method == baseline), None)
    if base is None:
        return f'<p class="note">The baseline {html.escape(baseline)} has no finished run yet.</p>'
    paired = {s.method: differences(s, base) for s in found if s is not base}
    tested = {method: paired_t(values) for method, values in paired.items() if len(values) > 1}
    adjusted = holm(tested)
    rows = []
    for method, values in paired.items():
        enough = method in tested
        low, high = bootstrap_interval(values) if enough else (0.0, 0.0)
        rows.append(
            [
                html.escape(method),
                str(len(values)),
                _score(base.score, values, sign=True) if values else "",
                f"[{score_text(base.score, low, sign=True)}, {score_text(base.score, high, sign=True)}]"
                if enough
                else "",
                f"{tested[method]:.3f}" if enough else "",
                f"{adjusted[method]:.3f}" if enough else "",
            ]
        )
    points = ", points" if base.score == "strict" else ""
    head = ("method", "seeds", f"minus {html.escape(baseline)}{points}", "bootstrap 95%", "paired t, p", "Holm, p")
    return _table(head, rows)


def _targets(found: Sequence[Summary], marks: Mapping[str, float]) -> str:
    def cell(summary: Summary, target: float) -> str:
        costs = [cost for cost in summary.cost_to(target, "evaluations") if cost is not None]
        share = f"{len(costs)}/{len(summary.seeds)}"
        return f"{sum(costs) / len(costs) / 1000:.0f}k ({share})" if costs else f"never (0/{len(summary.seeds)})"

    rows = [[html.escape(s.method), *(cell(s, target) for target in marks.values())] for s in found]
    return _table(("method", *(f"to {mark}" for mark in marks)), rows)


def _curve(summary: Summary, cost: str) -> list[tuple[float, float, float, float]]:
    """Mean cost, mean score and its interval at each evaluation that all seeds have."""
    count = min(len(record["scores"]) for record in summary.records)
    out = []
    for at in range(count):
        spent = [record["scores"][at][cost] for record in summary.records]
        out.append(
            (sum(spent) / len(spent), *mean_interval([comparable_score(r["scores"][at]) for r in summary.records]))
        )
    return out


def plot(found: Sequence[Summary], cost: str) -> str:
    """The score against a cost, mean and 95% interval over seeds, as SVG."""
    curves = {summary.method: _curve(summary, cost) for summary in found}
    most = max((point[0] for curve in curves.values() for point in curve), default=1) or 1
    name = found[0].score if found else "strict"
    low = min((point[2] for curve in curves.values() for point in curve), default=0.0)
    high = max((point[3] for curve in curves.values() for point in curve), default=1.0)
    if name == "strict":  # a share
        low, high = max(0.0, low - 0.03), min(1.0, high + 0.03)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * value / most

    def y(value: float) -> float:
        return 8 + (HEIGHT - BOTTOM - 8) * (1 - (min(max(value, low), high) - low) / (high - low or 1))

    parts = _axes(x, y, most, (low, high), (COSTS[cost], name))
    for colour, curve in zip(_colours(found), curves.values(), strict=True):
        band = [(x(p[0]), y(p[3])) for p in curve] + [(x(p[0]), y(p[2])) for p in reversed(curve)]
        line = [(x(p[0]), y(p[1])) for p in curve]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" fill-opacity=".12"/>')
        parts.append(f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(parts)}</svg>'
    )


def _colours(found: Sequence[Summary]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(found))]


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
        parts.append(f'<text x="{LEFT - 6}" y="{y(score) + 4:.0f}" text-anchor="end">{_mark(names[1], score)}</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 4}" text-anchor="end">{names[0]}</text>')
    return parts


def _key(found: Sequence[Summary]) -> str:
    items = [
        f'<span><i style="background:{colour}"></i>{html.escape(s.method)}</span>'
        for colour, s in zip(_colours(found), found, strict=True)
    ]
    return f'<p class="key">{"".join(items)}</p>'


def _base(records: Sequence[Record]) -> str:
    first = records[0]
    name = score_name(first["scores"][0])
    said = f"The base scores {score_text(name, first['scores'][0][name])}{score_unit(name)}"
    guided = first.get("base_guided")
    return (
        f"{said}; at its best guidance ({guided['guidance']:g}) {score_text(name, guided[name])}{score_unit(name)}."
        if guided
        else f"{said}."
    )


def page(records: Sequence[Record], *, title: str, baseline: str, missing: Sequence[str]) -> str:
    """The whole page; ``missing`` names the runs that are not there yet."""
    if not records:
        return f"<!doctype html><title>{html.escape(title)}</title><p>No run has finished yet.</p>"
    found = summaries(records)
    best = max(mean_interval([comparable_score(r["scores"][-1]) for r in summary.records])[0] for summary in found)
    base, name = comparable_score(records[0]["scores"][0]), found[0].score
    marks = {_mark(name, target): target for target in (base + (best - base) * share for share in (0.5, 0.8, 1.0))}
    used = [record["evaluations"] for record in records]
    absent = f"<p class='note'>Not finished yet: {html.escape(', '.join(missing))}.</p>" if missing else ""
    figures = "".join(
        f"<figure>{plot(found, cost)}<figcaption>Held-out {name} against {spent}; mean and 95% interval over seeds."
        f"</figcaption></figure>"
        for cost, spent in COSTS.items()
    )
    pictures = "".join(
        f'<figure><img alt="before and after, {html.escape(s.method)}" src="{s.records[0]["pictures"]}">'
        f"<figcaption>{html.escape(s.method)}, seed {s.seeds[0]}: the same prompts and start noise, base above, "
        "trained below.</figcaption></figure>"
        for s in found
        if s.records[0].get("pictures")
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>Every method from the same base, with the same prompts, at an equal number of model evaluations (a forward of one
sample is 1, a backward 2), or as near to it as whole iterations come: {min(used):,} to {max(used):,}. Score:
{WHAT.get(name, f"held-out {name}")}, without guidance. {_base(records)} Intervals are over seeds (Student, 95%).</p>
{absent}
<h2>Final scores</h2>{_finals(found)}
<p class="note">Background (its deviation from the true colour), patch energy (the mean square of what repeats there
with the model's patches) and denoising loss as multiples of the base's. CPU s: processor seconds of training,
evaluation apart.</p>
<h2>Against {html.escape(baseline)}</h2>{_against(found, baseline)}
<h2>Model evaluations to reach a score</h2>{_targets(found, marks)}
<p class="note">Mean over the seeds that reached it, and how many did; at the resolution of the evaluations.</p>
<h2>Curves</h2>{_key(found)}{figures}
<h2>Pictures</h2>{pictures}
</html>
"""
