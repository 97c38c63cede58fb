"""Plan a comparison of methods over several seeds, train the runs that are missing, and write the page.

All runs have the same base, prompts and cost. ``--processes`` says how many run at a time, each in one process;
``--shard`` splits them among several machines.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.commands.compare.jobs import Contender, Job, Turn, read_record, run_jobs, select_shard, unfinished
from grpaint.commands.compare.record import Record
from grpaint.core.bounds import whole_number
from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.measures.score import comparable_score
from grpaint.recipe.config import TrainRecipe
from grpaint.recipe.costs import costs
from grpaint.recipe.deployment import Deployment
from grpaint.report.method_summary import COSTS, summarise_methods
from grpaint.report.pages.comparison import comparison_page
from grpaint.report.svg import comparison_svg
from grpaint.storage.atomic import write_atomic

EVALUATIONS = 9  # approximate number per run
SEARCH_SEED, SEARCH_SHARE = 100, 0.25
RATES, CLIPS = (0.5, 1.0, 2.0), (1.0, 0.1)
COARSE = 0.1  # share of the budget in one iteration above which a warning is logged
MILLISECONDS = 0.6  # of processor time per model evaluation, assumed until a run has been measured
MOST_MINUTES = 5_256_000  # of processor time a run
WORKERS = len(os.sched_getaffinity(0))

Log = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """The methods, seeds and budget of a comparison, and the folder of its files.

    One of ``evaluations`` (model evaluations) and ``minutes`` is the budget of each run; the other is 0.
    """

    contenders: tuple[Contender, ...]
    world: str
    seeds: tuple[int, ...]
    evaluations: int
    minutes: float
    out: Path
    sets: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, methods: Sequence[str], world: str, seeds: str, budget: tuple[int, float], out: Path, sets: Sequence[str]
    ) -> "Comparison":
        """Make a comparison from command-line arguments; ``budget`` is (model evaluations, minutes).

        Raises:
            ConfigError: a method or a seed cannot be read.
        """
        contenders = tuple(Contender.parse(word) for word in methods)
        return cls(contenders, world, parse_seeds(seeds), *budget, out.absolute(), tuple(sets))

    def check(self, only: Sequence[str], baseline: str | None) -> None:
        """Refuse methods and budgets that cannot be compared.

        Raises:
            ConfigError: two budgets or none, a method named twice or unknown, or a recipe that cannot be opened.
        """
        if (self.evaluations > 0) == (self.minutes > 0):
            raise ConfigError("compare: give --budget-evaluations or --budget-minutes, one of them and above 0.")
        if self.minutes > MOST_MINUTES:
            raise ConfigError(f"--budget-minutes {self.minutes:g}: at most {MOST_MINUTES:,}, which are ten years.")
        methods = [contender.name for contender in self.contenders]
        for name in (*only, *([baseline] if baseline else [])):
            if name not in methods:
                raise ConfigError(f"{name}: not among the methods compared: {', '.join(methods)}.")
        for name in methods:
            if methods.count(name) > 1:
                raise ConfigError(f"{name}: named twice among the methods compared.")
        deployed = {
            contender.name: _deployment(self.job(contender, 0, "runs", contender.name, 1).open()[0])
            for contender in self.contenders
        }
        for name, table in deployed.items():
            if table != deployed[methods[0]]:
                raise ConfigError(
                    f"{name}: its [deploy] or frozen adapters are not those of {methods[0]}, so they would be judged "
                    "in different ways; give both the same, by --set deploy.KEY=VALUE."
                )

    def budget(self, contender: Contender) -> int:
        """Model evaluations per run; a budget in minutes is converted by the seconds that calibration measured."""
        if self.evaluations:
            return self.evaluations
        file, rate = self.calibration(contender).record, MILLISECONDS / 1000
        if file.is_file():
            record = read_record(self.calibration(contender))
            rate = max(record["cpu_s"], 0.01) / max(record["evaluations"], 1)  # a record rounds to 0.01 s
        return max(1, round(60 * self.minutes / rate))

    def open(self, contender: Contender) -> tuple[TrainRecipe, dict[str, Any]]:
        """The recipe of a contender, before budget and seed are set."""
        return Job(contender, self.world, 0, (*self.sets, *contender.sets), self.out, 0).open()

    def calibration(self, contender: Contender) -> Job:
        """A run of a few iterations that measures the seconds per model evaluation of a method."""
        recipe, _ = self.open(contender)
        return self.job(contender, 0, "calibration", contender.name, 5 * costs(recipe).get("evaluations_iteration", 0))

    def job(self, contender: Contender, seed: int, folder: str, name: str, budget: int, *extra: str) -> Job:
        """Describe a run of a method for ``budget`` model evaluations; ``extra`` are further ``--set`` items.

        Its record goes to FOLDER/WORLD-NAME.json. About nine evaluations are made, or as many as a ``--set`` of
        ``evaluate.every`` says; outside "runs" only the first and the last.
        """
        recipe, _ = self.open(contender)
        every = max(1, budget // costs(recipe)["evaluations_iteration"] // EVALUATIONS)
        sets = [f"evaluate.every={every}", *self.sets, *contender.sets, f"train.seed={seed}"]
        sets += [f"train.evaluations={budget}", "train.iterations=1000000", f"checkpoint.every={every}", "threads=1"]
        if folder != "runs":  # calibration and search use the last score, on prompts that no reported run is judged on
            judged = recipe.evaluate.seed + self.search_seed
            sets += ["evaluate.every=1000000", "evaluate.guided=[]", "evaluate.pictures=0", f"evaluate.seed={judged}"]
        return Job(
            contender, self.world, seed, (*sets, *extra), self.out / folder / f"{self.world}-{name}.json", budget
        )

    @property
    def search_seed(self) -> int:
        """The training seed of the search, not among those reported; it also moves the seed of the held-out prompts."""
        return next(seed for seed in itertools.count(SEARCH_SEED) if seed not in self.seeds)

    def search(self) -> list[Job]:
        """Runs with three learning rates times two clip ranges for each method, on a seed and prompts of their own.

        A surrogate's clip range acts from the second update of a rollout on: before the first the ratio is exactly 1,
        unless other weights sampled. If it never acts, the second range would repeat the first bit for bit and is
        left out.
        """
        jobs = []
        for contender in self.contenders:
            recipe, plain = self.open(contender)
            surrogate = plain["objective"].get("surrogate", {})
            clips = "low" in surrogate and (recipe.train.updates > 1 or recipe.behaviour is not None)
            for rate in RATES:
                for clip in CLIPS if clips else CLIPS[:1]:
                    extra = [f"train.learning_rate={rate * recipe.train.learning_rate:.6g}"]
                    name = f"{contender.name}-rate{rate:g}"
                    if clips:
                        extra += [f"objective.surrogate.{end}={clip * surrogate[end]:.6g}" for end in ("low", "high")]
                        name += f"-clip{clip:g}"
                    share = round(self.budget(contender) * SEARCH_SHARE)
                    jobs.append(self.job(contender, self.search_seed, "search", name, share, *extra))
        return jobs

    def runs(self) -> list[Job]:
        """Every method with every seed, seeds outermost, with the best settings of its search if that is complete."""
        best = {contender: self.best(contender) for contender in self.contenders}
        return [
            self.job(contender, seed, "runs", f"{contender.name}-seed{seed}", self.budget(contender), *best[contender])
            for seed in self.seeds
            for contender in self.contenders
        ]

    def warn(self, log: Log) -> None:
        """Log the methods whose iterations are so large that a run may end far above the budget."""
        for contender in self.contenders:
            each, budget = costs(self.open(contender)[0])["evaluations_iteration"], self.budget(contender)
            if each > COARSE * budget:
                log(
                    f"{contender.name}: an iteration takes up to {each:,} of {budget:,} model evaluations, and a run "
                    f"ends with a whole one; a budget of {math.ceil(each / COARSE):,} or more compares better"
                )

    def best(self, contender: Contender) -> tuple[str, ...]:
        """The settings whose search run ended with the highest score; none until the search is complete."""
        jobs = dataclasses.replace(self, contenders=(contender,)).search()
        scored = [(comparable_score(read_record(job)["scores"][-1]), job) for job in jobs if job.record.is_file()]
        if len(scored) < len(jobs):
            return ()
        return tuple(s for s in max(scored, key=lambda pair: pair[0])[1].sets if _is_searched(s))

    def run(
        self,
        *,
        only: Sequence[str],
        shard: str,
        search: bool,
        baseline: str | None,
        dry: bool,
        log: Log,
        processes: int | None = None,
    ) -> None:
        """Train the runs that are missing, then write comparison.json, the plots and the page from all records.

        ``only``: train these methods alone; empty for all. ``baseline``: None for the first method.
        ``processes``: the most runs at a time; None for one a usable core.

        Raises:
            ConfigError: the methods or the budget cannot be compared.
            RunError: a run failed.
        """
        self.check(only, baseline)
        workers = processes or WORKERS
        names = only or [contender.name for contender in self.contenders]
        mine = dataclasses.replace(
            self, contenders=tuple(contender for contender in self.contenders if contender.name in names)
        )
        if not self.minutes:
            mine.warn(log)
        stages = [mine.search] if search else []
        if self.minutes:
            stages.insert(0, lambda: [mine.calibration(contender) for contender in mine.contenders])
        for stage in (*stages, mine.runs):
            jobs = unfinished(select_shard(stage(), shard))
            if dry:
                _log_plan(jobs, finished_records(self.runs()), workers, log)
            elif jobs:
                log(f"{len(jobs)} runs, {min(workers, len(jobs))} at once")
                run_jobs(jobs, self.out / "work", log, workers)
        if dry:
            return
        every = self.runs()
        self.out.mkdir(parents=True, exist_ok=True)
        with Turn(log).lock(self.out / ".lock", f"the page of {self.out}"):  # the last to write it has read all records
            records = finished_records(every)
            absent = [job.name for job in every if not job.record.is_file()]
            title, first = f"grpaint: methods compared on {self.world}", baseline or self.contenders[0].name
            write_comparison(self.out, records, title=title, baseline=first, missing=absent, log=log)
        log(f"{len(records)} of {len(every)} runs; {self.out / 'comparison.html'}")


def _deployment(recipe: TrainRecipe) -> tuple[Deployment, tuple[str, ...]] | None:
    """Return how a recipe's model will be used, with the frozen adapters that are then on; None without [deploy]."""
    return (recipe.deploy, recipe.deployed.frozen) if recipe.deploy and recipe.deployed else None


def _is_searched(item: str) -> bool:
    return item.startswith(("train.learning_rate=", "objective.surrogate."))


def _log_plan(jobs: Sequence[Job], records: Sequence[Record], workers: int, log: Log) -> None:
    """Log the model evaluations and processor hours of each job, by the rate of finished runs if there are any.

    The hours here assume that ``workers`` runs at a time share the usable cores.
    """
    used = sum(record["evaluations"] for record in records)
    rate = sum(record["cpu_s"] for record in records) / used if used else MILLISECONDS / 1000
    for job in jobs:
        log(f"{job.name:48}{job.evaluations:>10,} evaluations{job.evaluations * rate / 3600:7.2f} h")
    total = sum(job.evaluations for job in jobs)
    hours = total * rate / 3600
    here = hours / min(workers, WORKERS)
    log(f"{len(jobs)} runs, {total:,} model evaluations, {hours:.1f} processor hours, {here:.1f} h here")


def finished_records(jobs: Sequence[Job]) -> list[Record]:
    """The records of the jobs that have finished."""
    return [read_record(job) for job in jobs if job.record.is_file()]


def write_comparison(
    out: Path, records: Sequence[Record], *, title: str, baseline: str, missing: Sequence[str], log: Log
) -> None:
    """Write comparison.json, the page and one SVG file per cost; ``missing`` names the unfinished runs.

    Without matplotlib there are no SVG files, which is logged.
    """
    out.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in record.items() if key != "pictures"} for record in records]
    write_atomic(out / "comparison.json", json.dumps(plain, indent=1) + "\n")
    write_atomic(out / "comparison.html", comparison_page(records, title=title, baseline=baseline, missing=missing))
    summaries = summarise_methods(records)
    try:
        for cost in COSTS if summaries else ():
            write_atomic(out / f"strict-by-{cost.replace('_', '-')}.svg", comparison_svg(summaries, cost))
    except MissingExtra as error:
        log(f"no strict-by-*.svg, the page has the same curves: {error}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse ``--seeds``, whole numbers separated by commas.

    Raises:
        ConfigError: one is not a whole number from 0, or occurs twice.
    """
    seeds = [whole_number(part.strip()) for part in text.split(",")]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"--seeds {text:.80}: whole numbers from 0, separated by commas, each once; for example 0,1,2."
        )
    return tuple(seed for seed in seeds if seed is not None)
