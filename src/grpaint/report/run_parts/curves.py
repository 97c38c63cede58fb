"""The curves of a run for its page's scripts, in groups; those that a run has not written are left out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.measures.score import score_name
from grpaint.report.run_parts.standing import spent_s
from grpaint.report.run_record import Line, RunRecord

MOST_POINTS = 2000
RANK_SECONDS = "processes/seconds"
DEPLOYED = "deploy/"  # before the numbers of the model as [deploy] uses it
Values = list[float | None]


@dataclass(frozen=True)
class Plot:
    """A chart: its title, and the keys of its lines with their labels; ``percent`` for shares."""

    title: str
    lines: Mapping[str, str]
    percent: bool = False
    note: str = ""


POLICY = (
    Plot(
        "Ratio error", {"policy/ratio_error": "before the first update"}, note="Large in fp32: trust no later number."
    ),
    Plot("Clip share", {"policy/clip_fraction": "of the rows"}, percent=True),
    Plot("KL to the reference", {"policy/kl": "mean"}),
    Plot("Log ratio", {"policy/log_ratio": "mean absolute"}),
    Plot("Distance from the behaviour policy", {"policy/behind": "mean square"}),
    Plot("Error of the last jump", {"policy/terminal": "relative"}),
    Plot("Anchor loss", {"policy/anchor": "denoising"}),
    Plot("Gradient norm", {"policy/grad_norm": "before clipping"}),
    Plot("Update to weight", {"policy/update_to_weight": "relative size of a step"}),
    Plot("Groups without spread", {"zero_spread_share": "share of the groups"}, percent=True),
    Plot("Advantage", {"advantage/abs_mean": "mean absolute"}),
    Plot("Updates left out", {"train/skipped_updates": "skipped", "train/nonfinite_updates": "not finite"}),
    Plot("Denoising loss, training", {"sft/denoising": "of the batch"}),
    Plot("Gradient norm", {"sft/grad_norm": "before clipping"}),
    Plot("Update to weight", {"sft/update_to_weight": "relative size of a step"}),
    Plot("Learning rate", {"train/learning_rate": "learning rate"}),
)
COSTS = (
    Plot(
        "Seconds by phase",
        {
            "time/rollout_s": "rollout",
            "time/reward_s": "reward",
            "time/reward_wait_s": "wait for reward",
            "time/update_s": "update",
            "time/evaluate_s": "evaluation",
            "time/pictures_s": "pictures",
        },
        note="Of many processes: those of the slowest rank.",
    ),
    Plot("Processor seconds", {"time/cpu_s": "all threads"}),
    Plot("Slowest rank", {"processes/slowest_rank": "its number"}),
    Plot("Bytes between processes", {"processes/bytes": "an iteration"}),
    Plot(
        "Model evaluations", {"cost/model_evaluations": "training", "cost/evaluation_model_evaluations": "evaluation"}
    ),
    Plot("Scores computed", {"cost/reward_calls": "an iteration"}),
)
HELD_OUT = {
    "soft": "Soft score",
    "background": "Background",
    "patch_energy": "Patch energy",
    "denoising_loss": "Denoising loss, held out",
}

SETTINGS = ("iteration", "prompts", "guidance", "steps", "tuned_share")  # numbers of an evaluation that measure nothing


def curve_data(record: RunRecord) -> dict[str, Any]:
    """Return the x axes (``tables``), the groups of charts that run.js draws, and that of the ``top``, if any."""
    metrics = _with_shares(record)
    spent, seconds = 0.0, {0: 0.0}
    for line in metrics:
        spent += spent_s(line)
        seconds[line["iteration"]] = spent
    costs = {0: 0.0} | {line["iteration"]: line["cost/model_evaluations"] for line in metrics}
    tables = {"metrics": _Table(metrics), "evaluations": _Table([_flat(line) for line in record.evaluations])}
    groups = {
        "Score and rewards": _scores(record, tables),
        "What no reward sees": _unseen(record, tables),
        "Policy": _plots(POLICY, tables["metrics"]),
        "Time and cost": [
            *_plots(COSTS, tables["metrics"]),
            *_by_prefix(tables["metrics"], f"{RANK_SECONDS}/", "Seconds by rank", "rank "),
            *_by_prefix(tables["metrics"], "memory/", "Memory, MiB"),
        ],
    }
    shown = {line["key"] for charts in groups.values() for chart in charts for line in chart["series"]}
    groups["Other numbers"] = _others(tables["metrics"], shown)
    return {
        "tables": {name: table.axes(costs, seconds) for name, table in tables.items()},
        "top": _top(record, tables),
        "groups": [_group(title, charts) for title, charts in groups.items() if charts],
    }


def _top(record: RunRecord, tables: Mapping[str, "_Table"]) -> dict[str, Any] | None:
    """Return the chart that tells most: the held-out score, or the held-out loss of a supervised run."""
    held_out, metrics = tables["evaluations"], tables["metrics"]
    if record.supervised and "denoising_loss" in held_out.keys:
        return _chart(
            "Held-out denoising loss", [held_out.series("evaluations", "denoising_loss", "loss", points=True)]
        )
    if record.supervised and "sft/denoising" in metrics.keys:
        return _chart("Denoising loss, training", [metrics.series("metrics", "sft/denoising", "loss")])
    return _score_chart(record, held_out)


def _flat(line: Line) -> Line:
    """Return an evaluation's line with the numbers and intervals of the deployed model beside the others."""
    return {**line, **{DEPLOYED + key: value for key, value in line.get("deploy", {}).items()}}


def _held_out(table: "_Table", key: str, label: str = "held out") -> list[dict[str, Any]]:
    """Return the lines of a measure of evaluations: by ``[evaluate]``, and as deployed if the run has that."""
    keys = {key: label} | ({DEPLOYED + key: "as deployed"} if DEPLOYED + key in table.keys else {})
    return [table.series("evaluations", each, text, points=True) for each, text in keys.items()]


def _score_chart(record: RunRecord, held_out: "_Table") -> dict[str, Any] | None:
    score = score_name(record.evaluations[-1]) if record.evaluations else ""
    if score not in held_out.keys:
        return None
    series = _held_out(held_out, score, "held out, 95% interval")
    return _chart(f"Held-out score: {score.replace('_', ' ')}", series, percent=score == "strict")


def _group(title: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a group of charts; those that show nothing but 0 are named instead."""
    drawn = [chart for chart in charts if any(value for line in chart["series"] for value in line["y"])]
    return {"title": title, "charts": drawn, "zeros": [chart["title"] for chart in charts if chart not in drawn]}


def _with_shares(record: RunRecord) -> list[Line]:
    """Return the metrics lines with the share of groups without spread, and a key for each rank's seconds."""
    groups, key = record.settings.get("train", {}).get("prompts"), "advantage/zero_spread_groups"
    known = isinstance(groups, int) and groups > 0
    lines = []
    for line in record.metrics:
        ranks = line.get(RANK_SECONDS)
        each = {f"{RANK_SECONDS}/{rank}": value for rank, value in enumerate(ranks if isinstance(ranks, list) else ())}
        share = {"zero_spread_share": line[key] / groups} if known and isinstance(line.get(key), int) else {}
        lines.append({**line, **share, **each} if share or each else line)
    return lines


class _Table:
    """Lines of one file in at most ``MOST_POINTS`` bins; the value of a bin is the mean of those in it."""

    def __init__(self, lines: Sequence[Line]) -> None:
        size = max(1, math.ceil(len(lines) / MOST_POINTS))
        self.bins = [lines[start : start + size] for start in range(0, len(lines), size)]
        self.keys = list(dict.fromkeys(key for line in lines for key, value in line.items() if _finite(value)))

    def column(self, key: str) -> Values:
        """Return a key's values."""
        return [_mean([line[key] for line in lines if key in line]) for lines in self.bins]

    def axes(self, costs: Mapping[int, float], seconds: Mapping[int, float]) -> dict[str, Values]:
        """Return the x of the bins by axis: that of a bin's last line."""
        ends = [lines[-1]["iteration"] for lines in self.bins]
        return {
            "iteration": ends,
            "evaluations": [costs.get(end) for end in ends],
            "seconds": [_rounded(seconds[end]) if end in seconds else None for end in ends],
        }

    def series(self, table: str, key: str, label: str, *, points: bool = False) -> dict[str, Any]:
        """Return a line of a chart, with its band if the lines have an interval or a standard deviation."""
        y = self.column(key)
        line: dict[str, Any] = {"key": key, "table": table, "label": label, "y": y, "points": points}
        if f"{key}/std" in self.keys:
            deviations = self.column(f"{key}/std")
            pairs = list(zip(y, deviations, strict=True))
            line["low"] = [None if a is None or b is None else _rounded(a - b) for a, b in pairs]
            line["high"] = [None if a is None or b is None else _rounded(a + b) for a, b in pairs]
        elif any(f"{key}_interval" in one for lines in self.bins for one in lines):
            ends = [_ends(lines, f"{key}_interval") for lines in self.bins]
            line["low"], line["high"] = [pair[0] for pair in ends], [pair[1] for pair in ends]
        return line


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [value for value in values if _finite(value)]
    return _rounded(sum(numbers) / len(numbers)) if numbers else None


def _ends(lines: Sequence[Line], key: str) -> Values:
    """Return the mean lower and upper end of the intervals of a bin."""
    intervals = [line[key] for line in lines if isinstance(line.get(key), list) and len(line[key]) == 2]
    return [_mean([interval[end] for interval in intervals]) for end in (0, 1)]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _chart(title: str, series: list[dict[str, Any]], *, percent: bool = False, note: str = "") -> dict[str, Any]:
    return {"title": title, "series": series, "percent": percent, "note": note}


def _plots(plots: Sequence[Plot], table: _Table) -> list[dict[str, Any]]:
    charts = []
    for plot in plots:
        series = [table.series("metrics", key, label) for key, label in plot.lines.items() if key in table.keys]
        if series:
            charts.append(_chart(plot.title, series, percent=plot.percent, note=plot.note))
    return charts


def _scores(record: RunRecord, tables: Mapping[str, "_Table"]) -> list[dict[str, Any]]:
    """Return the charts of the score and of each reward, in training and on held-out prompts."""
    metrics, held_out = tables["metrics"], tables["evaluations"]
    charts = [chart] if (chart := _score_chart(record, held_out)) else []
    score = score_name(record.evaluations[-1]) if record.evaluations else ""
    if "soft" in held_out.keys and score != "soft":
        charts.append(_chart("Soft score", _held_out(held_out, "soft")))
    names = [key for key in (*metrics.keys, *held_out.keys) if key.startswith("reward/") and key.count("/") == 1]
    for key in dict.fromkeys(names):
        series = [metrics.series("metrics", key, "training, \u00b1 std")] if key in metrics.keys else []
        series += _held_out(held_out, key) if key in held_out.keys else []
        charts.append(_chart(f"Reward {key.removeprefix('reward/')}", series))
    if "reward" in held_out.keys and score != "reward" and len(names) > 1:
        charts.append(_chart("Weighted reward", _held_out(held_out, "reward")))
    for title, start, end in (
        ("Share of the advantage", "advantage/share/", ""),
        ("Added weight", "reward/", "/multiplier"),
    ):
        keys = [key for key in metrics.keys if key.startswith(start) and key.endswith(end) and key.count("/") == 2]
        if keys:
            labels = {key: key.removeprefix(start).removesuffix(end) for key in keys}
            series = [metrics.series("metrics", key, label) for key, label in labels.items()]
            charts.append(_chart(title, series, percent=not end))
    return charts


def _unseen(record: RunRecord, tables: Mapping[str, "_Table"]) -> list[dict[str, Any]]:
    """Return the charts of held-out measures that no reward is made of."""
    held_out = tables["evaluations"]
    score = score_name(record.evaluations[-1]) if record.evaluations else ""
    titles = {key: title for key, title in HELD_OUT.items() if key not in ("soft", score)}
    elsewhere = {*SETTINGS, *HELD_OUT, score}
    known = ("reward", "image/", DEPLOYED)
    titles |= {key: key for key in held_out.keys if key not in elsewhere and not key.startswith(known)}
    images = {key: f"Images: {key[6:].replace('_', ' ')}" for key in held_out.keys if key.startswith("image/")}
    return [_chart(title, _held_out(held_out, key)) for key, title in (titles | images).items() if key in held_out.keys]


def _by_prefix(table: _Table, prefix: str, title: str, label: str = "") -> list[dict[str, Any]]:
    """Return a chart of the numbers whose keys begin so, if there are any."""
    keys = [key for key in table.keys if key.startswith(prefix)]
    lines = [table.series("metrics", key, label + key.removeprefix(prefix)) for key in keys]
    return [_chart(title, lines)] if lines else []


def _others(table: _Table, shown: set[str]) -> list[dict[str, Any]]:
    """Return a chart of each number that is in no group, but for those by step and those that bands show."""
    left = [
        key
        for key in table.keys
        if key not in shown
        and key not in ("iteration", "advantage/zero_spread_groups")
        and not key.endswith("/std")
        and not key.rpartition("/")[2].isdigit()
    ]
    correlations = [key for key in table.keys if key.startswith("prune/rank_correlation/")]
    charts = [_chart(key, [table.series("metrics", key, key)]) for key in left]
    if correlations:
        series = [table.series("metrics", key, f"after {key.rpartition('/')[2]} steps") for key in correlations]
        charts.append(_chart("Previews and final rewards, rank correlation", series))
    return charts
