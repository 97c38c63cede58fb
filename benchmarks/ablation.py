"""Lean AWM and what it is without each of its pieces, at several budgets: tables of `docs/results/lean`.

    python benchmarks/ablation.py docs/results/lean [docs/results/embedded]

Each folder FOLDER/BUDGET holds a comparison of `lean-awm`, `awm` and variants of `lean-awm`, as `grpaint compare` wrote
it. Prints Markdown: scores, differences paired by seed with Student's 95% interval, the dearest seed's background and
denoising loss, and the verdicts. The second folder has AWM's runs as they were before its average was warmed up.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from claims import NO_LOWER, Record, Runs, final, load, verdict

from grpaint.measures.intervals import mean_interval

RECIPE, BASELINE = "lean-awm", "awm"
GOAL = 0.9  # strict at the largest budget


def multiple(name: str) -> Callable[[Record], float]:
    """How to read a score of the end as a multiple of the base's."""
    return lambda record: float(record["scores"][-1][name] / record["scores"][0][name])


def interval(values: Sequence[float], sign: str = "") -> str:
    """A mean and its 95% interval in percent, or a single value without one."""
    mean, low, high = (100 * value for value in mean_interval(values))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]" if len(values) > 1 else f"{mean:{sign}.1f}"


def differences(ours: Runs, theirs: Runs) -> list[float]:
    """Differences of strict at the end, seed by seed."""
    return [final(ours[seed]) - final(theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def budget_table(budget: int, methods: dict[str, Runs]) -> None:
    """Print the methods of one budget, the recipe first."""
    print(f"\nBudget {budget:,}\n")
    print("| method | strict, % | against lean-awm, points | background, worst | denoising loss, worst | seeds |")
    print("|---|---|---|---|---|---|")
    for name, runs in sorted(methods.items(), key=lambda item: (item[0] != RECIPE, item[0] != BASELINE)):
        records = [runs[seed] for seed in sorted(runs)]
        worst = [max(map(multiple(score), records)) for score in ("background", "denoising_loss")]
        gaps = differences(runs, methods.get(RECIPE, {})) if name != RECIPE else []
        gap = interval(gaps, "+") if gaps else ""
        strict = interval([final(record) for record in records])
        print(f"| `{name}` | {strict} | {gap} | x {worst[0]:.2f} | x {worst[1]:.2f} | {len(records)} |")


def claim(words: str, values: Sequence[float], bound: float) -> None:
    """Print a line of the table of verdicts: whether the interval of ``values`` lies above ``bound``; none without."""
    if not values:
        return
    word = verdict(values, bound) if len(values) > 1 else "undecided"
    print(f"| {words} | {interval(values, '+')} (bound {100 * bound:+.0f}) | {len(values)} | *{word}* |")


def main(folder: str, before: str = "") -> None:
    budgets = {int(path.name): dict(load(path)) for path in Path(folder).iterdir() if path.name.isdigit()}
    for budget, methods in sorted(budgets.items()):
        budget_table(budget, methods)
    print("\n| claim | points | seeds | verdict |\n|---|---|---|---|")
    for budget, methods in sorted(budgets.items()):
        gaps = differences(methods.get(RECIPE, {}), methods.get(BASELINE, {}))
        claim(f"lean-awm beats awm at {budget:,}", gaps, 0.0)
    half, whole = (budgets.get(budget, {}) for budget in (100_000, 200_000))
    if half and whole:
        gaps = differences(half.get(RECIPE, {}), whole.get(BASELINE, {}))
        claim("lean-awm at 100,000 ends no lower than awm at 200,000", gaps, NO_LOWER)
    if half and before:
        gaps = differences(half.get(RECIPE, {}), load(Path(before))[BASELINE])
        claim("the same against awm before its average was warmed up", gaps, NO_LOWER)
    longest = budgets[max(budgets)].get(RECIPE, {})
    claim(f"lean-awm reaches 90% at {max(budgets):,}", [final(record) - GOAL for record in longest.values()], 0.0)
    spent = [record["cpu_s"] for methods in budgets.values() for runs in methods.values() for record in runs.values()]
    print(f"\n{len(spent)} runs, {np.sum(spent) / 3600:.1f} processor hours")


if __name__ == "__main__":
    main(*sys.argv[1:])
