"""The papers' claims, held against a finished comparison: differences paired by seed, their intervals, and verdicts.

    python benchmarks/claims.py docs/results/embedded [docs/results/embedded-epsilon]

Prints a Markdown table. A claim *holds* where the 95% interval of its difference (Student, over seeds) lies above its
bound, *does not hold* where it lies below, and is *undecided* where the bound lies inside. Where a method is read
before its end, its score is interpolated between evaluations; its learning rate has not yet fallen to 0 there.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpaint.measures.intervals import mean_interval

Record = Mapping[str, Any]
Runs = Mapping[int, Record]  # of a method, by seed


@dataclass(frozen=True)
class Claim:
    """``ours`` against ``theirs``, each a method and how to read its score off a run."""

    words: str
    ours: str
    theirs: str
    read_ours: Callable[[Record], float]
    read_theirs: Callable[[Record], float]
    bound: float = 0.0


def at(share: float) -> Callable[[Record], float]:
    """Held-out strict when ``share`` of the budget was spent."""

    def read(record: Record) -> float:
        lines = record["scores"]
        spent = [line["evaluations"] for line in lines]
        budget = record["settings"]["train"]["evaluations"]
        return float(np.interp(share * budget, spent, [line["strict"] for line in lines]))

    return read


def final(record: Record) -> float:
    """Held-out strict at the end."""
    return float(record["scores"][-1]["strict"])


def before(record: Record) -> float:
    """Held-out strict of the base."""
    return float(record["scores"][0]["strict"])


NO_LOWER = -0.03  # of strict, which "no lower" and "matches" may lose
FLOW = [
    Claim("MixGRPO ends no lower than DanceGRPO", "mix-grpo", "dance-grpo", final, final, NO_LOWER),
    Claim("MixGRPO-Flash ends no lower than DanceGRPO", "mix-grpo-flash", "dance-grpo", final, final, NO_LOWER),
    Claim("MixGRPO-Flash* ends no lower than DanceGRPO", "mix-grpo-flash-star", "dance-grpo", final, final, NO_LOWER),
    Claim("MixGRPO beats Flow-GRPO at equal cost", "mix-grpo", "flow-grpo", final, final),
    Claim("OVF 12 of 24 matches the full 24", "ovf", "flow-grpo", final, final, NO_LOWER),
    Claim("Pro-GRPO beats Flow-GRPO at .77 of its evaluations", "pro-grpo", "flow-grpo", at(0.77), final),
    Claim("Pro-GRPO-Flash beats it at .59", "pro-grpo-flash", "flow-grpo", at(0.59), final),
    Claim("Pro-GRPO beats Flow-GRPO at equal cost", "pro-grpo", "flow-grpo", final, final),
    Claim("late pruning beats early pruning", "pro-grpo", "pro-grpo-early", final, final),
    Claim("TAFS-GRPO beats Flow-GRPO in 4 steps", "tafs-grpo", "flow-grpo-4-steps", final, final),
]
EPSILON = [
    *(
        Claim(f"SFT + GRPO beats DDPO at {share:.0%} of the budget", "sft-flow-grpo", "ddpo", at(share), at(share))
        for share in (0.25, 0.5, 0.75, 1.0)
    ),
    Claim("SFT + GRPO beats SFT alone", "sft-flow-grpo", "sft-flow-grpo", final, before),
]


def verdict(differences: Sequence[float], bound: float) -> str:
    """Whether the 95% interval of ``differences`` lies above ``bound``, below it, or around it."""
    _, low, high = mean_interval(differences)
    return "holds" if low > bound else "does not hold" if high < bound else "undecided"


def row(claim: Claim, runs: Mapping[str, Runs]) -> str:
    """A line of the table."""
    seeds = sorted(runs[claim.ours].keys() & runs[claim.theirs].keys())
    if len(seeds) < 2:
        return f"| {claim.words} | - | - | {len(seeds)} | not measured |"
    ours = [claim.read_ours(runs[claim.ours][seed]) for seed in seeds]
    theirs = [claim.read_theirs(runs[claim.theirs][seed]) for seed in seeds]
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean, low, high = mean_interval(differences)
    scores = f"{100 * np.mean(ours):.1f} and {100 * np.mean(theirs):.1f}"
    bound = f" (bound {100 * claim.bound:+.0f})" if claim.bound else ""
    interval = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{bound}"
    return f"| {claim.words} | {scores} | {interval} | {len(seeds)} | *{verdict(differences, claim.bound)}* |"


def load(folder: Path) -> Mapping[str, Runs]:
    """A comparison's runs by method and seed."""
    runs: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in json.loads((folder / "comparison.json").read_text(encoding="utf-8")):
        runs[record["method"]][record["seed"]] = record
    return runs


def main(folders: Sequence[str]) -> None:
    print("| claim | strict, % | difference, points | seeds | verdict |\n|---|---|---|---|---|")
    for folder, claims in zip(map(Path, folders), (FLOW, EPSILON), strict=False):
        runs = load(folder)
        for claim in claims:
            print(row(claim, runs))


if __name__ == "__main__":
    main(sys.argv[1:])
