"""The run folder: settings, metrics, pictures and checkpoints. A kill at any moment loses nothing but time."""

import datetime
import errno
import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tomli_w

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.run.facts import read_facts
from grpaint.run.lines import EVALUATIONS, METRICS, PICTURES, append_line, cut_lines, read_lines, set_aside, sync_lines
from grpaint.run.pictures import HELD_OUT, ROLLOUT, Drawing, RolloutImages, remove_pictures, save_drawing, save_rollout
from grpaint.run.state import check_checkpoint, last_checkpoint, read_state
from grpaint.storage.atomic import atomic_folder, write_atomic
from grpaint.storage.files import WEIGHTS_FILE, numbered
from grpaint.storage.lock import Lock
from grpaint.storage.reading import read_toml

LINES, LOCK_FILE = (METRICS, EVALUATIONS, PICTURES), ".lock"


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
    """``runs/NAME``: run.toml, run.json, metrics.jsonl, evaluations.jsonl, samples/, checkpoints/NNNNNN/.

    Made by :meth:`create` or :meth:`open` it is locked until its block ends: one process at a time writes a run.
    """

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path, self._lock = path, lock
        self.samples, self.checkpoints, self.nonfinite = (
            path / name for name in ("samples", "checkpoints", "nonfinite")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.release()

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], sets: Sequence[str] = ()) -> "RunFolder":
        """A new folder, made aside and renamed; ``sets`` are the ``--set`` arguments that led to ``settings``.

        Raises:
            ConfigError: the name is taken, or another process is taking it.
        """
        if path.exists():
            raise _taken(path)
        with ExitStack() as undo:
            try:
                with atomic_folder(path) as temporary:
                    lock = undo.enter_context(_lock(temporary, path))
                    folder = cls(temporary)
                    for part in (folder.samples, folder.checkpoints):
                        part.mkdir()
                    folder.keep_settings(settings)
                    folder.status(status="starting", sets=list(sets))
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                    raise _taken(path) from None
                raise
            undo.pop_all()
        lock.renamed(path / LOCK_FILE)
        return cls(path, lock)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run to go on with it; a damaged run.json or run.toml is repaired, and a line says so.

        Raises:
            ConfigError: ``path`` has no run.toml and no checkpoint to restore it from, or another process writes it.
        """
        if not (path / "run.toml").is_file() and not numbered(path / "checkpoints"):
            raise ConfigError(f"{path}: no run to resume there (run.toml not found).")
        with ExitStack() as undo:
            folder = undo.enter_context(cls(path, _lock(path, path)))
            folder._sweep()
            folder._repair()
            undo.pop_all()
        return folder

    def _sweep(self) -> None:
        """Remove what a killed process had not finished writing."""
        pictures = (self.samples / HELD_OUT, self.samples / ROLLOUT)
        for folder in (self.path, self.samples, *pictures, self.checkpoints):
            for left in [*folder.glob(".*.part"), *folder.glob(".*.lock")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _repair(self) -> None:
        """Set a damaged run.json aside; restore run.toml from the last checkpoint where it is damaged or missing."""
        facts, settings = self.path / "run.json", self.path / "run.toml"
        try:
            read_facts(facts)
        except ConfigError as error:
            copy = set_aside(facts)
            facts.unlink()
            _log("%s It holds nothing that a run needs, and is written anew; as it was it is %s.", error, copy.name)
        try:
            if not self.settings():
                raise ConfigError(f"{settings}: empty.")
        except ConfigError as error:
            if not (made_with := self.made_with()):
                raise
            as_it_was = f" As it was it is {set_aside(settings).name}." if settings.is_file() else ""
            self.keep_settings(made_with)
            _log("%s It is restored from the last checkpoint.%s", error, as_it_was)

    def discard(self) -> None:
        """Remove the folder of a run that never began."""
        shutil.rmtree(self.path, ignore_errors=True)

    def settings(self) -> dict[str, Any]:
        """Return the settings of run.toml."""
        return read_toml(self.path / "run.toml")

    def made_with(self) -> dict[str, Any] | None:
        """Return the settings that the last whole checkpoint was made with; None without one, or if it is an early one.

        Raises:
            CheckpointError: there are checkpoints, and none is whole.
        """
        return read_state(self.resumable).get("settings") if self.resumable else None

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
        """Return the contents of run.json; empty before a run has begun, and where it is damaged, as a line says."""
        try:
            return read_facts(self.path / "run.json")
        except ConfigError as error:
            _log("%s What it says of the run is left out.", error)
            return {}

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl or evaluations.jsonl."""
        append_line(self.path / name, line)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a file; a last line that a kill cut short, and damaged ones, are left out."""
        return read_lines(self.path / name)

    def cut(self, iteration: int) -> None:
        """Remove the lines after ``iteration`` (-1: all), as if the run had stopped there."""
        for name in LINES:
            if name != PICTURES or (self.path / name).exists():  # a run may draw none
                cut_lines(self.path / name, iteration)
        remove_pictures(self.samples, iteration)

    def add_drawing(self, iteration: int, drawing: Drawing) -> None:
        """Save held-out pictures, then their line in pictures.jsonl."""
        save_drawing(self.samples, iteration, drawing.images)
        self.append(PICTURES, drawing.line(iteration))

    def add_rollout(self, iteration: int, rollout: RolloutImages) -> None:
        """Save the images of a rollout in place of those of the one before."""
        save_rollout(self.samples, iteration, rollout)

    def latest(self) -> Path | None:
        """Return the last checkpoint whose state.json is whole and whose files have their sizes; None before the first.

        Raises:
            CheckpointError: there are checkpoints, and none is whole.
        """
        return last_checkpoint(self.checkpoints, read_state)

    @cached_property
    def resumable(self) -> Path | None:
        """The last checkpoint of which every byte is as it was written; None before the first.

        Raises:
            CheckpointError: there are checkpoints, and none is whole.
        """
        return last_checkpoint(self.checkpoints, check_checkpoint)

    def save(self, iteration: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint aside, then rename it into place.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints stay.
        """
        final = self.checkpoints / f"{iteration:06d}"
        try:
            for name in LINES:
                sync_lines(self.path / name)
            with atomic_folder(final, replace=True) as temporary:
                write(temporary)
        except OSError as error:
            raise CheckpointError(
                f"{final}: could not be written ({error.strerror or error}). The last good checkpoint stays; free some "
                "disk and go on with --resume."
            ) from error
        return final

    def thin(self, iteration: int, keep: int, best: int | None) -> None:
        """Remove all checkpoints up to ``iteration`` but the last ``keep`` and that of iteration ``best``.

        Later ones are damaged, or the run would have gone on from them.
        """
        earlier = [folder for folder in numbered(self.checkpoints) if int(folder.name) <= iteration]
        for folder in earlier[:-keep]:
            if int(folder.name) != best:
                shutil.rmtree(folder)


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists. Take another --name, or go on with it: --name {path.name} --resume.")


def _lock(folder: Path, path: Path) -> Lock:
    """Lock the ``folder`` of a run that is or will be at ``path``.

    Raises:
        ConfigError: another process writes it.
    """
    way_out = "Wait until it has ended or stop it (it saves on SIGTERM), or start another run with another --name."
    return Lock(folder / LOCK_FILE, str(path), way_out)


def _log(text: str, *values: object) -> None:
    logging.getLogger(__name__).warning(f"grpaint: {text}", *values)


def find_run(file: Path) -> RunFolder | None:
    """Return the run that a weight file belongs to, if any."""
    path = next((parent for parent in file.parents if (parent / "run.toml").is_file()), None)
    return RunFolder(path) if path else None


def evaluations(file: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the run that a weight file belongs to; none if it belongs to no run."""
    run = find_run(file)
    return run.lines(EVALUATIONS) if run else []


def find_checkpoint(name: str) -> Path:
    """Return the weight file of RUN-or-CHECKPOINT: a run's last, that of a checkpoint or export folder, or a file.

    Raises:
        ConfigError: there is no such run, folder or file, or the run has no checkpoint yet.
        CheckpointError: none of the run's checkpoints is whole.
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
