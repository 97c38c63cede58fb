"""Methods against each other: the same base, prompts and cost, several seeds; in parts, if need be."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.commands.compare.jobs import Entry, Job, Record, execute, load, missing, part
from grpaint.core.errors import ConfigError
from grpaint.measures.score import comparable_score
from grpaint.recipe.config import TrainRecipe
from grpaint.recipe.costs import costs
from grpaint.report.pages.comparison import COSTS, page, plot, summaries

EVALUATIONS = 9  # of a run, about
SEARCH_SEED, SEARCH_SHARE = 100, 0.25
RATES, CLIPS = (0.5, 1.0, 2.0), (1.0, 0.1)
COARSE = 0.1  # of the budget in one iteration
MILLISECONDS = 0.6  # of processor time an evaluation, before anything was measured
WORKERS = len(os.sched_getaffinity(0))

Log = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where its files go."""

    entries: tuple[Entry, ...]
    world: str
    seeds: tuple[int, ...]
    evaluations: int
    minutes: float
    out: Path
    sets: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, methods: Sequence[str], world: str, seeds: str, budget: tuple[int, float], out: Path, sets: Sequence[str]
    ) -> "Comparison":
        """Make a comparison from the words of the command line; ``budget`` is model evaluations and minutes.

        Raises:
            ConfigError: a method or a seed cannot be read.
        """
        entries = tuple(Entry.read(word) for word in methods)
        return cls(entries, world, read_seeds(seeds), *budget, out.resolve(), tuple(sets))

    def check(self, only: Sequence[str], baseline: str | None) -> None:
        """Refuse what cannot be compared, in one line.

        Raises:
            ConfigError: with the reason and the way out.
        """
        if (self.evaluations > 0) == (self.minutes > 0):
            raise ConfigError("compare: give --budget-evaluations or --budget-minutes, one of them and above 0.")
        methods = [entry.name for entry in self.entries]
        for name in (*only, *([baseline] if baseline else [])):
            if name not in methods:
                raise ConfigError(f"{name}: not among the methods compared: {', '.join(methods)}.")
        for name in methods:
            if methods.count(name) > 1:
                raise ConfigError(f"{name}: named twice among the methods compared.")
        for entry in self.entries:
            self.job(entry, 0, "runs", entry.name, 1).open()

    def budget(self, entry: Entry) -> int:
        """Model evaluations of a run; from minutes, by what the method's calibration took for one."""
        if self.evaluations:
            return self.evaluations
        file, rate = self.calibration(entry).record, MILLISECONDS / 1000
        if file.is_file():
            record = load(self.calibration(entry))
            rate = record["cpu_s"] / record["evaluations"]
        return max(1, round(60 * self.minutes / rate))

    def open(self, entry: Entry) -> tuple[TrainRecipe, dict[str, Any]]:
        """The recipe of an entry, before budgets and seeds."""
        return Job(entry, self.world, 0, (*self.sets, *entry.sets), self.out, 0).open()

    def calibration(self, entry: Entry) -> Job:
        """A few iterations, to learn what a model evaluation of this method takes."""
        recipe, _ = self.open(entry)
        return self.job(entry, 0, "calibration", entry.name, 5 * costs(recipe).get("evaluations_iteration", 0))

    def job(self, entry: Entry, seed: int, folder: str, name: str, budget: int, *extra: str) -> Job:
        """A run of a method for ``budget`` model evaluations."""
        recipe, _ = self.open(entry)
        every = max(1, budget // costs(recipe)["evaluations_iteration"] // EVALUATIONS)
        sets = [*self.sets, *entry.sets, f"train.seed={seed}", f"train.evaluations={budget}"]
        sets += ["train.iterations=1000000", f"checkpoint.every={every}", "threads=1"]
        if folder == "runs":
            sets += [f"evaluate.every={every}"]
        else:  # their last score is all that is asked
            sets += ["evaluate.every=1000000", "evaluate.guided=[]", "evaluate.pictures=0"]
        return Job(entry, self.world, seed, (*sets, *extra), self.out / folder / f"{self.world}-{name}.json", budget)

    def search(self) -> list[Job]:
        """Three learning rates times two clip ranges for each method, on a seed of its own.

        A surrogate's clip range acts from the second update of a rollout on: before the first the ratio is exactly 1,
        unless other weights sampled. Where it never acts the second range would repeat the first bit for bit, and is
        left out.
        """
        jobs = []
        for entry in self.entries:
            recipe, plain = self.open(entry)
            surrogate = plain["objective"].get("surrogate", {})
            clips = "low" in surrogate and (recipe.train.updates > 1 or recipe.behaviour is not None)
            for rate in RATES:
                for clip in CLIPS if clips else CLIPS[:1]:
                    extra = [f"train.learning_rate={rate * recipe.train.learning_rate:.6g}"]
                    name = f"{entry.name}-rate{rate:g}"
                    if clips:
                        extra += [f"objective.surrogate.{end}={clip * surrogate[end]:.6g}" for end in ("low", "high")]
                        name += f"-clip{clip:g}"
                    share = round(self.budget(entry) * SEARCH_SHARE)
                    jobs.append(self.job(entry, SEARCH_SEED, "search", name, share, *extra))
        return jobs

    def runs(self) -> list[Job]:
        """Every method with every seed, seeds outermost, with what the search found best for it where there was one."""
        best = {entry: self.best(entry) for entry in self.entries}
        return [
            self.job(entry, seed, "runs", f"{entry.name}-seed{seed}", self.budget(entry), *best[entry])
            for seed in self.seeds
            for entry in self.entries
        ]

    def warn(self, log: Log) -> None:
        """Say which methods' iterations are so large that a run may end far above the budget."""
        for entry in self.entries:
            each, budget = costs(self.open(entry)[0])["evaluations_iteration"], self.budget(entry)
            if each > COARSE * budget:
                log(
                    f"{entry.name}: an iteration takes up to {each:,} of {budget:,} model evaluations, and a run ends "
                    f"with a whole one; a budget of {math.ceil(each / COARSE):,} or more compares better"
                )

    def best(self, entry: Entry) -> tuple[str, ...]:
        """The settings with which the search of a method ended highest; none before it is complete."""
        jobs = dataclasses.replace(self, entries=(entry,)).search()
        found = [(comparable_score(load(job)["scores"][-1]), job) for job in jobs if job.record.is_file()]
        if len(found) < len(jobs):
            return ()
        return tuple(s for s in max(found, key=lambda pair: pair[0])[1].sets if _searched(s))

    def run(self, *, only: Sequence[str], shard: str, search: bool, baseline: str | None, dry: bool, log: Log) -> None:
        """Train the runs that are missing, then write comparison.json, the plots and the page from all records.

        Of the methods in ``only``, if it names any; ``baseline`` is the first method if None.

        Raises:
            ConfigError: something cannot be compared.
            RunError: a run failed.
        """
        self.check(only, baseline)
        names = only or [entry.name for entry in self.entries]
        mine = dataclasses.replace(self, entries=tuple(entry for entry in self.entries if entry.name in names))
        if not self.minutes:
            mine.warn(log)
        stages = [mine.search] if search else []
        if self.minutes:
            stages.insert(0, lambda: [mine.calibration(entry) for entry in mine.entries])
        for stage in (*stages, mine.runs):
            jobs = missing(part(stage(), shard))
            if dry:
                _say(jobs, collect(self.runs()), log)
            elif jobs:
                log(f"{len(jobs)} runs, {min(WORKERS, len(jobs))} at once")
                execute(jobs, self.out / "work", log, WORKERS)
        if dry:
            return
        every = self.runs()
        records = collect(every)
        absent = [job.name for job in every if not job.record.is_file()]
        title, first = f"grpaint: methods compared on {self.world}", baseline or self.entries[0].name
        write(self.out, records, title=title, baseline=first, absent=absent)
        log(f"{len(records)} of {len(every)} runs; {self.out / 'comparison.html'}")


def _searched(item: str) -> bool:
    return item.startswith(("train.learning_rate=", "objective.surrogate."))


def _say(jobs: Sequence[Job], done: Sequence[Record], log: Log) -> None:
    """Runs, model evaluations and processor hours, from what finished runs took where there are any."""
    used = sum(record["evaluations"] for record in done)
    rate = sum(record["cpu_s"] for record in done) / used if used else MILLISECONDS / 1000
    for job in jobs:
        log(f"{job.name:48}{job.evaluations:>10,} evaluations{job.evaluations * rate / 3600:7.2f} h")
    total = sum(job.evaluations for job in jobs)
    hours = total * rate / 3600
    log(f"{len(jobs)} runs, {total:,} model evaluations, {hours:.1f} processor hours, {hours / WORKERS:.1f} h here")


def collect(jobs: Sequence[Job]) -> list[Record]:
    """The records that there are."""
    return [load(job) for job in jobs if job.record.is_file()]


def write(out: Path, records: Sequence[Record], *, title: str, baseline: str, absent: Sequence[str]) -> None:
    """comparison.json, the plots, and the page."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in record.items() if key != "pictures"} for record in records]
    (out / "comparison.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    found = summaries(records)
    for cost in COSTS if found else ():
        (out / f"strict-by-{cost.replace('_', '-')}.svg").write_text(plot(found, cost) + "\n", encoding="utf-8")
    text = page(records, title=title, baseline=baseline, missing=absent)
    (out / "comparison.html").write_text(text, encoding="utf-8")


def read_seeds(text: str) -> tuple[int, ...]:
    """Return the numbers of ``--seeds``, which commas separate.

    Raises:
        ConfigError: one is not a whole number from 0, or is there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--seeds {text}: whole numbers from 0, separated by commas, each once; for example 0,1,2.")
    return tuple(map(int, parts))
