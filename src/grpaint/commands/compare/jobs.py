"""The runs of a comparison: their settings, running each in its own process, and the record of the finished run."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from grpaint.commands.compare.record import COSTS, RECORDED_SCORES, Record, read_record_of
from grpaint.core.bounds import whole_number
from grpaint.core.errors import ConfigError, RunError
from grpaint.images.encoding import png_data_url
from grpaint.images.pictures import open_picture
from grpaint.measures.score import deciding_line, score_name, score_text, score_unit
from grpaint.recipe.config import TrainRecipe, locate, open_recipe, override
from grpaint.run.folder import LOCK_FILE, RunFolder
from grpaint.run.signals import interrupt
from grpaint.storage.atomic import write_atomic
from grpaint.storage.lock import Lock
from grpaint.storage.reading import read_toml

INTERRUPTED = (130, -signal.SIGINT)  # exit codes of a run that Ctrl-C stopped


@dataclass(frozen=True)
class Contender:
    """A method in a comparison: a recipe, or a named variant of one with ``--set`` items."""

    name: str
    recipe: str
    sets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, word: str) -> "Contender":
        """Parse ``METHOD``, a recipe's file, or a variant of either, ``NAME=METHOD:KEY=VALUE;KEY=VALUE``.

        Raises:
            ConfigError: a variant is not of this form.
        """
        name, equals, rest = word.partition("=")
        recipe, colon, sets = rest.partition(":")
        if not equals:
            return cls(Path(word).stem if word.endswith(".toml") else word, word)
        if not (colon and recipe and sets and re.fullmatch(r"[\w.-]+", name)):
            raise ConfigError(
                f"{word}: write a variant as NAME=METHOD:KEY=VALUE;KEY=VALUE, for example "
                '"early=pro-grpo:plan.prune.at=[2,4]".'
            )
        return cls(name, recipe, tuple(sets.split(";")))


@dataclass(frozen=True)
class Job:
    """One run of a contender: its ``--set`` items, its budget of model evaluations, and the file of its record."""

    contender: Contender
    world: str
    seed: int
    sets: tuple[str, ...]
    record: Path
    evaluations: int

    @property
    def recipe(self) -> str:
        """The recipe as WORLD/METHOD, or the path of its .toml file."""
        return (
            self.contender.recipe
            if self.contender.recipe.endswith(".toml")
            else f"{self.world}/{self.contender.recipe}"
        )

    @property
    def name(self) -> str:
        """The stem of the record's file, and the name of the run folder."""
        return self.record.stem

    def open(self) -> tuple[TrainRecipe, dict[str, Any]]:
        """Open the recipe with this job's settings.

        Raises:
            ConfigError: the recipe cannot be opened, or does not train by RL.
        """
        recipe, settings = open_recipe(self.recipe, "train", self.sets)
        if not isinstance(recipe, TrainRecipe):
            raise ConfigError(f"{self.contender.recipe}: only methods that train can be compared.")
        return recipe, settings

    def fingerprint(self) -> str:
        """A hash of the recipe as written, its ``--set`` items and the user's own files that they name.

        Defaults are left out, so a default that is added later does not change it.
        """
        settings = override(read_toml(locate(self.recipe)), self.sets)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for file in _own_files(settings):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def _own_files(value: Any) -> list[Path]:
    """The user's own files that a recipe names anywhere as file.py:name, in the order of sorted keys."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [file for item in value for file in _own_files(item)]
    file = Path(str(value).rpartition(":")[0])
    return [file] if file.suffix == ".py" and file.is_file() else []


def read_record(job: Job) -> Record:
    """Read the record of a finished job.

    Raises:
        ConfigError: it is damaged, or was made with other settings.
    """
    identity = {"method": job.contender.name, "world": job.world, "seed": job.seed}
    return read_record_of(job.record, job.fingerprint(), identity)


def select_shard(jobs: Sequence[Job], shard: str) -> list[Job]:
    """The jobs of shard "i/n", with i from 1: every n-th job, from the i-th.

    Raises:
        ConfigError: ``shard`` is not of this form.
    """
    number, count = (whole_number(part) for part in shard.partition("/")[::2])
    if number is None or count is None or not 1 <= number <= count:
        raise ConfigError(f"--shard {shard:.80}: write it as i/n, for example 1/2.")
    return list(jobs)[number - 1 :: count]


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without a record."""
    return [job for job in jobs if not (job.record.is_file() and read_record(job))]


class Turn:
    """Waits for what another process writes, and logs the process that it waits for."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._logged, self.given_up = log, set[str](), threading.Event()

    def lock(self, file: Path, subject: str) -> Lock:
        """Take the lock of ``file`` once no other process holds it.

        Raises:
            RunError: the wait was given up.
        """

        def wait(holder: str) -> None:
            if self.given_up.is_set():
                raise RunError(f"{subject}: no longer waits for {holder}.")
            line = f"{subject}: waits for {holder}"
            if line not in self._logged:
                self._logged.add(line)
                self._log(line)

        return Lock(file, subject, "", wait)


def run_jobs(jobs: Sequence[Job], work: Path, log: Callable[[str], None], workers: int) -> None:
    """Run each job in its own process, at most ``workers`` at once; an interrupted run is resumed.

    Raises:
        RunError: runs failed; raised after all others have ended, with the names of those that failed.
        KeyboardInterrupt: Ctrl-C, which may reach a run alone.
    """
    failed, turn = [], Turn(log)
    work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_run, job, work, turn): job for job in jobs}
        try:
            for future in as_completed(waiting):
                job, (code, errors) = waiting[future], future.result()
                if code in INTERRUPTED:
                    interrupt(signal.SIGINT, None)
                if code:
                    failed.append(f"{job.name} ({errors.strip().splitlines()[-1] if errors.strip() else code})")
                else:
                    last = read_record(job)["scores"][-1]
                    name = score_name(last)
                    log(f"{job.name}  held-out {score_text(name, last[name])}{score_unit(name)}")
        except KeyboardInterrupt:  # the other children got the signal too, and save
            turn.given_up.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs did not finish: {'; '.join(failed)}. Run the command again.")


def _run(job: Job, work: Path, turn: Turn) -> tuple[int, str]:
    """Train one job and write its record if it succeeds; return its exit code and standard error.

    Waits for another command that trains the job, and for a run whose command was killed.
    """
    with turn.lock(work / f".{job.name}.lock", job.name):
        if job.record.is_file():  # another command has finished it
            return 0, ""
        folder = RunFolder(work / "runs" / job.name)
        if folder.path.exists():
            turn.lock(folder.path / LOCK_FILE, job.name).release()
        code, errors = _train(job, folder)
        if code == 0:
            job.record.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(job.record, json.dumps(make_record(job, folder)) + "\n")
        return code, errors


def _train(job: Job, folder: RunFolder) -> tuple[int, str]:
    """Train a job in a process of its own, which ends with this one; return its exit code and standard error."""
    words = ["train", job.recipe, "--name", job.name, "--runs", str(folder.path.parent)]
    if folder.path.exists():
        words.append("--resume")
    for item in job.sets:
        words += ["--set", item]
    program = (
        "import sys; from grpaint.parallel.parent import stop_with_parent; stop_with_parent(); "
        "from grpaint.cli import main; sys.argv[0] = 'grpaint'; sys.exit(main())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    parent, child = os.pipe()  # it ends when this process does, however that ends
    with open(parent, "rb") as stdin, open(child, "wb"):
        process = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment,
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    return process.returncode, process.stderr


def make_record(job: Job, folder: RunFolder) -> Record:
    """The record of a finished run: its settings, its scores over cost, and its pictures at half size.

    Raises:
        RunError: a line of the run is lost that the record needs.
    """
    spent = {0: (0, 0.0, 0)}  # by iteration: model evaluations, processor seconds, reward calls
    cpu, calls = 0.0, 0
    metrics = folder.lines("metrics.jsonl")
    for line in (line for line in metrics if "time/cpu_s" in line):
        cpu, calls = cpu + line["time/cpu_s"], calls + line.get("cost/reward_calls", 0)
        spent[line["iteration"]] = line["cost/model_evaluations"], cpu, calls
    evaluation_lines = folder.lines("evaluations.jsonl")
    if not evaluation_lines or not {line["iteration"] for line in evaluation_lines} | {*range(len(spent))} <= {*spent}:
        raise RunError(
            f"{folder.path}: lines of metrics.jsonl or evaluations.jsonl are lost, so its costs are not known; remove "
            "it and run the command again."
        )
    scores = []
    for line in evaluation_lines:
        costs = dict(zip(COSTS, spent[line["iteration"]], strict=True))
        judged = deciding_line(line)
        values = {name: judged[name] for name in (*RECORDED_SCORES, score_name(judged)) if name in judged}
        scores.append(values | costs | {"cpu_s": round(costs["cpu_s"], 2)})
    guided = evaluation_lines[0].get("base_guided")
    return {
        "method": job.contender.name,
        "recipe": job.contender.recipe,
        "world": job.world,
        "seed": job.seed,
        "fingerprint": job.fingerprint(),
        "settings": job.open()[1],
        "evaluations": scores[-1]["evaluations"],
        "cpu_s": scores[-1]["cpu_s"],
        "scores": scores,
        "base_guided": guided and {"guidance": guided["guidance"], score_name(guided): guided[score_name(guided)]},
        "pictures": _pictures(folder.samples / "before-after.png"),
        "versions": folder.facts().get("versions"),
        "commit": folder.facts().get("commit"),
    }


def _pictures(file: Path) -> str:
    """A run's sheet of pictures at half size, in a ``data:`` URL; empty if there is none."""
    if not file.is_file():
        return ""
    with open_picture(file.read_bytes()) as sheet:
        small = sheet.convert("RGB").resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
        small = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    return png_data_url(small, optimize=True)
