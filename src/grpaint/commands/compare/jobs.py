"""The runs of a comparison: what each is, making it in a process of its own, and the record that stays of it."""

import hashlib
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
from grpaint.images.encoding import png_data_url
from grpaint.measures.score import score_name, score_text, score_unit
from grpaint.recipe.config import TrainRecipe, locate, open_recipe, override, read_toml
from grpaint.run.folder import RunFolder
from grpaint.storage.atomic import write_atomic

KEPT = ("iteration", "score", "strict", "soft", "background", "patch_energy", "denoising_loss")

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method in a comparison: a recipe, or a variant of one under a name of its own."""

    name: str
    recipe: str
    sets: tuple[str, ...] = ()

    @classmethod
    def read(cls, word: str) -> "Entry":
        """``METHOD``, a recipe's file, or either as ``NAME=METHOD:KEY=VALUE;KEY=VALUE``.

        Raises:
            ConfigError: where it is neither.
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
    """One run: a recipe with its settings, and where its record goes."""

    entry: Entry
    world: str
    seed: int
    sets: tuple[str, ...]
    record: Path
    evaluations: int

    @property
    def recipe(self) -> str:
        """WORLD/METHOD, or the file."""
        return self.entry.recipe if self.entry.recipe.endswith(".toml") else f"{self.world}/{self.entry.recipe}"

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
        """Of the recipe, the settings given to it and the user's own files that they name.

        A default that is added later changes nothing.
        """
        given = override(read_toml(locate(self.recipe)), self.sets)
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
        for file in _own_files(given):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def _own_files(value: Any) -> list[Path]:
    """The files of a user's own that a recipe names anywhere as file.py:name, in its order."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [file for item in value for file in _own_files(item)]
    file = Path(str(value).rpartition(":")[0])
    return [file] if file.suffix == ".py" and file.is_file() else []


def load(job: Job) -> Record:
    """A finished run's record.

    Raises:
        ConfigError: where it was made with other settings.
    """
    record: Record = json.loads(job.record.read_text(encoding="utf-8"))
    if record["fingerprint"] != job.fingerprint():
        raise ConfigError(
            f"{job.record}: made with other settings (budget, recipe, search or a file of your own) than this "
            "command's. Take another --out, or remove it."
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
                    last = load(job)["scores"][-1]
                    name = score_name(last)
                    log(f"{job.name}  held-out {score_text(name, last[name])}{score_unit(name)}")
        except KeyboardInterrupt:  # children got the signal too, and save
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs did not finish: {'; '.join(failed)}. Run the command again.")


def _run(job: Job, work: Path) -> tuple[int, str]:
    """One job to its end, and its record written; the code and what was said where it failed."""
    folder = RunFolder(work / "runs" / job.name)
    words = ["train", job.recipe, "--name", job.name, "--runs", str(work / "runs")]
    if folder.path.exists():
        words.append("--resume")
    for item in job.sets:
        words += ["--set", item]
    program = "import sys; from grpaint.cli import main; sys.argv[0] = 'grpaint'; sys.exit(main())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        job.record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(job.record, json.dumps(record_of(job, folder)) + "\n")
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
        kept = {name: line[name] for name in (*KEPT, score_name(line)) if name in line}
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
        "base_guided": guided and {"guidance": guided["guidance"], score_name(guided): guided[score_name(guided)]},
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
    return png_data_url(small, optimize=True)
