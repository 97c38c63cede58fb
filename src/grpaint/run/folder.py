"""The run folder: settings, metrics, pictures and checkpoints. A kill at any moment loses nothing but time."""

import datetime
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.storage.atomic import atomic_folder, write_atomic
from grpaint.storage.files import WEIGHTS_FILE
from grpaint.storage.reading import read_toml

LINES = ("metrics.jsonl", "evaluations.jsonl")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the commit of a source checkout; None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return result.stdout.strip() or None


class RunFolder:
    """``runs/NAME``: run.toml, run.json, metrics.jsonl, evaluations.jsonl, samples/, checkpoints/NNNNNN/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples, self.checkpoints = path / "samples", path / "checkpoints"

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], sets: Sequence[str] = ()) -> "RunFolder":
        """A new folder, made aside and renamed; ``sets`` are the ``--set`` arguments that led to ``settings``.

        Raises:
            ConfigError: the name is taken.
        """
        if path.exists():
            raise ConfigError(f"{path} exists. Take another --name, or go on with it: --name {path.name} --resume.")
        with atomic_folder(path) as temporary:
            folder = cls(temporary)
            for part in (folder.samples, folder.checkpoints):
                part.mkdir()
            folder.keep_settings(settings)
            folder.status(status="starting", sets=list(sets))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run.

        Raises:
            ConfigError: ``path`` has no run.toml.
        """
        if not (path / "run.toml").is_file():
            raise ConfigError(f"{path}: no run to resume there (run.toml not found).")
        return cls(path)

    def discard(self) -> None:
        """Remove the folder of a run that never began."""
        shutil.rmtree(self.path, ignore_errors=True)

    def settings(self) -> dict[str, Any]:
        """Return the settings of run.toml."""
        return read_toml(self.path / "run.toml")

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace run.toml, for example with more ``train.iterations`` on resume."""
        write_atomic(self.path / "run.toml", tomli_w.dumps(dict(settings)))

    def status(self, **changes: Any) -> None:
        """Change values of run.json; the first call records the command, versions, commit and start."""
        facts = self.facts()
        if not facts:
            packages = ("grpaint", "torch", "numpy", "safetensors")
            facts = {
                "command": ["grpaint", *sys.argv[1:]],
                "versions": {name: importlib.metadata.version(name) for name in packages},
                "commit": _commit(),
                "start": _now(),
            }
        if "status" in changes:
            ended = changes["status"] in ("finished", "interrupted", "failed")
            facts |= {"end": _now() if ended else None, "reason": None}
        write_atomic(self.path / "run.json", json.dumps(facts | changes, indent=2) + "\n")

    def facts(self) -> dict[str, Any]:
        """Return the contents of run.json; empty before a run has begun."""
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl or evaluations.jsonl."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a file; a last line that a kill cut short is left out."""
        file = self.path / name
        if not file.is_file():
            return []
        raw = file.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in raw]

    def cut(self, iteration: int) -> None:
        """Remove the lines after ``iteration`` (-1: all), as if the run had stopped there."""
        for name in LINES:
            earlier = [line for line in self.lines(name) if line["iteration"] <= iteration]
            write_atomic(self.path / name, "".join(json.dumps(line) + "\n" for line in earlier))

    def latest(self) -> Path | None:
        """Return the folder of the last complete checkpoint; None before the first."""
        complete = sorted(folder for folder in self.checkpoints.glob("[0-9]*") if folder.is_dir())
        return complete[-1] if complete else None

    def save(self, iteration: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint aside, then rename it into place.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints stay.
        """
        final = self.checkpoints / f"{iteration:06d}"
        try:
            with atomic_folder(final, replace=True) as temporary:
                write(temporary)
        except OSError as error:
            raise CheckpointError(
                f"{final}: could not be written ({error.strerror or error}). The last good checkpoint stays; free some "
                "disk and go on with --resume."
            ) from error
        return final

    def thin(self, keep: int, best: int | None) -> None:
        """Remove all checkpoints but the last ``keep`` and that of iteration ``best``."""
        complete = sorted(folder for folder in self.checkpoints.glob("[0-9]*") if folder.is_dir())
        for folder in complete[:-keep]:
            if int(folder.name) != best:
                shutil.rmtree(folder)


def evaluations(file: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the run that a weight file belongs to; none if it belongs to no run."""
    run = next((parent for parent in file.parents if (parent / "run.toml").is_file()), None)
    return RunFolder(run).lines("evaluations.jsonl") if run else []


def find_checkpoint(name: str) -> Path:
    """Return the weight file of RUN-or-CHECKPOINT: a run's last, that of a checkpoint or export folder, or a file.

    Raises:
        ConfigError: there is no such run, folder or file, or the run has no checkpoint yet.
    """
    for path in (Path(name), Path("runs") / name):
        if (path / "run.toml").is_file():
            latest = RunFolder(path).latest()
            if latest is None:
                raise ConfigError(f"{path}: this run has saved no checkpoint yet.")
            return latest / WEIGHTS_FILE
        if path.is_dir():
            files = [path / WEIGHTS_FILE, *path.glob("*.safetensors")]
            return next((file for file in files if file.is_file()), files[0])
        if path.is_file():
            return path
    raise ConfigError(f"{name}: neither a run folder, nor a checkpoint folder, nor a .safetensors file.")
