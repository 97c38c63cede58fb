"""Methods against each other: the same base, prompts and cost, several seeds; in parts, if need be."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from grpaint.core.errors import ConfigError, RunError
from grpaint.run.comparison_page import COSTS, page, plot, summaries
from grpaint.run.config import TrainRecipe, locate, open_recipe, override, read_toml
from grpaint.run.folder import RunFolder
from grpaint.run.outlook import costs

KEPT = ("iteration", "strict", "soft", "background", "patch_energy", "denoising_loss")
EVALUATIONS = 9  # of a run, about
SEARCH_SEED, SEARCH_SHARE = 100, 0.25
RATES, CLIPS = (0.5, 1.0, 2.0), (1.0, 0.1)
MILLISECONDS = 0.6  # of processor time an evaluation, before anything was measured
WORKERS = len(os.sched_getaffinity(0))

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method in a comparison: a recipe, or a variant of one under a name of its own."""

    name: str
    recipe: str
    sets: tuple[str, ...] = ()

    @classmethod
    def read(cls, word: str) -> "Entry":
        """``METHOD``, or ``NAME=METHOD:KEY=VALUE;KEY=VALUE``.

        Raises:
            ConfigError: where it is neither.
        """
        name, equals, rest = word.partition("=")
        recipe, colon, sets = rest.partition(":")
        if not equals:
            return cls(word, word)
        if not (colon and recipe and sets and re.fullmatch(r"[\w.-]+", name)):
            raise ConfigError(
                f"{word}: write a variant as NAME=METHOD:KEY=VALUE;KEY=VALUE, for example "
                '"early=pro-grpo:plan.prune.at=[2,4]".'
            )
        return cls(name, recipe, tuple(sets.split(";")))


@dataclass(frozen=True)
class Job:
    """One run: a recipe with its settings, and where its record goes."""

    entry: "Entry"
    world: str
    seed: int
    sets: tuple[str, ...]
    record: Path
    evaluations: int

    @property
    def recipe(self) -> str:
        """WORLD/METHOD."""
        return f"{self.world}/{self.entry.recipe}"

    @property
    def name(self) -> str:
        """Also the name of its run folder."""
        return self.record.stem

    def open(self) -> tuple[TrainRecipe, dict[str, Any]]:
        """The recipe that this job runs."""
        recipe, settings = open_recipe(self.recipe, "train", self.sets)
        if not isinstance(recipe, TrainRecipe):
            raise ConfigError(f"{self.entry.recipe}: only methods that train can be compared.")
        return recipe, settings

    def fingerprint(self) -> str:
        """Of the recipe and the settings given to it; a default that is added later changes nothing."""
        given = override(read_toml(locate(self.recipe)), self.sets)
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


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

    def best(self, entry: Entry) -> tuple[str, ...]:
        """The settings with which the search of a method ended highest; none before it is complete."""
        jobs = dataclasses.replace(self, entries=(entry,)).search()
        found = [(load(job)["scores"][-1]["strict"], job) for job in jobs if job.record.is_file()]
        if len(found) < len(jobs):
            return ()
        return tuple(s for s in max(found, key=lambda pair: pair[0])[1].sets if _searched(s))

    def go(
        self, *, only: Sequence[str], shard: str, search: bool, baseline: str, dry: bool, log: Callable[[str], None]
    ) -> None:
        """Make what is missing, then comparison.json, the plots and the page from all that is there."""
        mine = dataclasses.replace(self, entries=tuple(entry for entry in self.entries if entry.name in only))
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
        write(self.out, records, title=f"grpaint: methods compared on {self.world}", baseline=baseline, absent=absent)
        log(f"{len(records)} of {len(every)} runs; {self.out / 'comparison.html'}")


def _searched(item: str) -> bool:
    return item.startswith(("train.learning_rate=", "objective.surrogate."))


def load(job: Job) -> Record:
    """A finished run's record.

    Raises:
        ConfigError: where it was made with other settings.
    """
    record: Record = json.loads(job.record.read_text(encoding="utf-8"))
    if record["fingerprint"] != job.fingerprint():
        raise ConfigError(
            f"{job.record}: made with other settings (budget, recipe or search) than this command's. Take another "
            "--out, or remove it."
        )
    return record


def part(jobs: Sequence[Job], shard: str) -> list[Job]:
    """The jobs of shard "i/n", i from 1."""
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"--shard {shard}: write it as i/n, for example 1/2.")
    return list(jobs)[int(number) - 1 :: int(count)]


def missing(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without a record."""
    return [job for job in jobs if not (job.record.is_file() and load(job))]


def _say(jobs: Sequence[Job], done: Sequence[Record], log: Callable[[str], None]) -> None:
    """Runs, model evaluations and processor hours, from what finished runs took where there are any."""
    used = sum(record["evaluations"] for record in done)
    rate = sum(record["cpu_s"] for record in done) / used if used else MILLISECONDS / 1000
    for job in jobs:
        log(f"{job.name:48}{job.evaluations:>10,} evaluations{job.evaluations * rate / 3600:7.2f} h")
    total = sum(job.evaluations for job in jobs)
    hours = total * rate / 3600
    log(f"{len(jobs)} runs, {total:,} model evaluations, {hours:.1f} processor hours, {hours / WORKERS:.1f} h here")


def execute(jobs: Sequence[Job], work: Path, log: Callable[[str], None], workers: int) -> None:
    """Run jobs in processes of their own, as many at once as ``workers``; an interrupted one is taken up where it was.

    Raises:
        RunError: after all others have ended, naming the runs that failed.
    """
    failed = []
    work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_run, job, work): job for job in jobs}
        try:
            for future in as_completed(waiting):
                job, (code, said) = waiting[future], future.result()
                if code:
                    failed.append(f"{job.name} ({said.strip().splitlines()[-1] if said.strip() else code})")
                else:
                    log(f"{job.name}  held-out {100 * load(job)['scores'][-1]['strict']:.1f}%")
        except KeyboardInterrupt:  # children got the signal too, and save
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs did not finish: {'; '.join(failed)}. Run the command again.")


def _run(job: Job, work: Path) -> tuple[int, str]:
    """One job to its end, and its record written; the code and what was said where it failed."""
    folder = RunFolder(work / "runs" / job.name)
    words = ["train", job.recipe, "--name", job.name]
    if folder.path.exists():
        words.append("--resume")
    for item in job.sets:
        words += ["--set", item]
    program = "import sys; from grpaint.cli import main; sys.argv[0] = 'grpaint'; sys.exit(main())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        job.record.parent.mkdir(parents=True, exist_ok=True)
        aside = job.record.with_suffix(".part")
        aside.write_text(json.dumps(record_of(job, folder)) + "\n", encoding="utf-8")
        aside.replace(job.record)
    return done.returncode, done.stderr


def record_of(job: Job, folder: RunFolder) -> Record:
    """What is kept of a finished run: its settings, its scores over cost, and its pictures, small."""
    used = {0: (0, 0.0, 0)}
    cpu, calls = 0.0, 0
    for line in folder.lines("metrics.jsonl"):
        cpu, calls = cpu + line["time/cpu_s"], calls + line.get("cost/reward_calls", 0)
        used[line["iteration"]] = line["cost/model_evaluations"], cpu, calls
    judged = folder.lines("evaluations.jsonl")
    scores = []
    for line in judged:
        evaluations, seconds, asked = used[line["iteration"]]
        kept = {name: line[name] for name in KEPT if name in line}
        scores.append(kept | {"evaluations": evaluations, "cpu_s": round(seconds, 2), "reward_calls": asked})
    guided = judged[0].get("base_guided")
    return {
        "method": job.entry.name,
        "recipe": job.entry.recipe,
        "world": job.world,
        "seed": job.seed,
        "fingerprint": job.fingerprint(),
        "settings": job.open()[1],
        "evaluations": scores[-1]["evaluations"],
        "cpu_s": scores[-1]["cpu_s"],
        "scores": scores,
        "base_guided": guided and {"guidance": guided["guidance"], "strict": guided["strict"]},
        "pictures": _pictures(folder.samples / "before-after.png"),
        "versions": folder.facts().get("versions"),
        "commit": folder.facts().get("commit"),
    }


def _pictures(file: Path) -> str:
    """A run's page of pictures, half size, as the text of a data address."""
    if not file.is_file():
        return ""
    with Image.open(file) as page:
        small = page.convert("RGB").resize((page.width // 2, page.height // 2), Image.Resampling.LANCZOS)
        small = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def asked(key: str, numbers: str) -> tuple[int, ...]:
    """Numbers separated by commas.

    Raises:
        ConfigError: where they are none, or not whole numbers from 0, or repeat.
    """
    parts = [part.strip() for part in numbers.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"{key} {numbers}: whole numbers from 0, separated by commas, each once; for example 0,1,2.")
    return tuple(map(int, parts))
