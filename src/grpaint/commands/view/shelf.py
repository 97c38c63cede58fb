"""The runs of a folder, read only, and read again only where their files have changed."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from grpaint.core.text import without_surrogates
from grpaint.report.run_parts.row import run_row
from grpaint.report.run_record import RunRecord
from grpaint.run.lines import EVALUATIONS, METRICS, PICTURES
from grpaint.run.pictures import ROLLOUT
from grpaint.run.record import is_run, read_outline
from grpaint.storage.files import numbered

FILES = ("run.json", "run.toml", METRICS, EVALUATIONS, PICTURES)  # those that change while a run goes on
LATEST_S = 0.5  # how old the table may be: many tabs share one look at the disk
MADE = 12  # pages and their data in memory

T = TypeVar("T")


class Shelf:
    """The run folders directly inside ``folder``; hidden ones, and links that lead out of it, are left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder.resolve()
        self._lock, self._looked = threading.Lock(), 0.0
        self._folders: dict[str, Path] = {}
        self._stamps: dict[str, str] = {}
        self._outlines: dict[str, tuple[str, RunRecord]] = {}
        self._made: OrderedDict[Any, Any] = OrderedDict()

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, in the order of their names."""
        with self._lock:
            self._look()
            return [self._row(name) for name in sorted(self._folders)]

    def stamp(self, name: str) -> str | None:
        """Return a text that changes whenever a run's files do; None if there is no such run."""
        with self._lock:
            self._look()
            return self._stamps.get(name)

    def folder_of(self, name: str) -> Path | None:
        """Return the folder of a run, None if there is no such run; ``name`` is looked up and never part of a path."""
        with self._lock:
            self._look()
            return self._folders.get(name)

    def made(self, key: Any, stamp: str, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, or returned the last time if the runs' ``stamp`` is still the same."""
        with self._lock:
            if key in self._made and self._made[key][0] == stamp:
                self._made.move_to_end(key)
                return self._made[key][1]
        value = make()
        with self._lock:
            self._made[key] = (stamp, value)
            self._made.move_to_end(key)
            while len(self._made) > MADE:
                self._made.popitem(last=False)
        return value

    def _look(self) -> None:
        """List the folder and the times and sizes of the runs' files, unless that was done just now."""
        if time.monotonic() - self._looked < LATEST_S:
            return
        found = {without_surrogates(path.name): path for path in self._run_folders()}
        self._stamps = {name: _stamp(path) for name, path in found.items()}
        self._folders = found
        self._outlines = {name: outline for name, outline in self._outlines.items() if name in found}
        self._looked = time.monotonic()

    def _run_folders(self) -> list[Path]:
        try:
            entries = sorted(self.folder.iterdir())
        except OSError:  # it has been removed, or its disk is away for a while
            return []
        return [path for path in entries if not path.name.startswith(".") and is_run(path) and self._contained(path)]

    def _contained(self, run: Path) -> bool:
        """Return whether all that is read of a run lies inside the folder, its links followed."""
        rollout = run / "samples" / ROLLOUT
        try:
            links = [run] if run.is_symlink() else []
            for folder in (run, run / "samples", rollout, *numbered(rollout)[-1:]):
                if folder.is_dir():
                    with os.scandir(folder) as entries:
                        links += [Path(entry) for entry in entries if entry.is_symlink()]
            return all(link.resolve().is_relative_to(self._root) for link in links)
        except (OSError, RuntimeError):  # links in a circle
            return False

    def _row(self, name: str) -> dict[str, Any]:
        stamp = self._stamps[name]
        known, outline = self._outlines.get(name, ("", None))
        if outline is None or known != stamp:
            outline = read_outline(self._folders[name])
            self._outlines[name] = (stamp, outline)
        written = _written(self._folders[name])
        return run_row(replace(outline, silent_s=max(0.0, time.time() - written) if written else 0.0), stamp)


def _stamp(folder: Path) -> str:
    """Return a digest of the times and sizes of a run's files."""
    states = []
    for name in FILES:
        try:
            state = (folder / name).stat()
            states.append((state.st_mtime_ns, state.st_size, state.st_ino))
        except OSError:
            states.append((0, 0, 0))
    return sha256(repr(states).encode()).hexdigest()[:16]


def _written(folder: Path) -> float:
    """Return when the run wrote its last line, in seconds since 1970; 0 if it has written none."""
    times = [0.0]
    for name in (METRICS, EVALUATIONS):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)
