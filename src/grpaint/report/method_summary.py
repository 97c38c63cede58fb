"""The records of compared runs, by method: final scores, what a score cost, and differences paired by seed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.measures.intervals import mean_interval
from grpaint.measures.score import comparable_score, score_name

Record = Mapping[str, Any]

COSTS = {"evaluations": "model evaluations", "cpu_s": "processor seconds, training", "reward_calls": "reward calls"}


@dataclass(frozen=True)
class Curve:
    """A method's scores over what they had cost: means over seeds, and the ends of 95% intervals."""

    cost: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class MethodSummary:
    """The records of one method, one per seed, in the order of ``seeds``."""

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
        """By seed, the cost at which the score first reached ``target``; None if it never did."""
        return [
            next((line[cost] for line in record["scores"] if comparable_score(line) >= target), None)
            for record in self.records
        ]

    def curve(self, cost: str) -> Curve:
        """The comparable score over ``cost``, a key of ``COSTS``, at each evaluation that all seeds have.

        The interval of a share ends at 0 and 1.
        """
        evaluations = list(zip(*(record["scores"] for record in self.records), strict=False))
        spent = [sum(line[cost] for line in lines) / len(lines) for lines in evaluations]
        intervals = [mean_interval([comparable_score(line) for line in lines]) for lines in evaluations]
        mean, low, high = (list(values) for values in zip(*intervals, strict=True))
        if self.score == "strict":
            low, high = [max(0.0, end) for end in low], [min(1.0, end) for end in high]
        return Curve(spent, mean, low, high)


def summarise_methods(records: Sequence[Record]) -> list[MethodSummary]:
    """Group records by method, the best mean final score first."""
    by_method: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["seed"]):
        by_method[record["method"]].append(record)
    summaries = [
        MethodSummary(method, tuple(r["seed"] for r in rows), tuple(rows)) for method, rows in by_method.items()
    ]
    return sorted(summaries, key=lambda summary: -mean_interval(summary.final(summary.score))[0])


def seed_differences(one: MethodSummary, other: MethodSummary) -> list[float]:
    """The final score of ``one`` minus that of ``other``, for each seed that both have."""
    theirs = dict(zip(other.seeds, other.final(other.score), strict=True))
    return [mine - theirs[s] for s, mine in zip(one.seeds, one.final(one.score), strict=True) if s in theirs]
