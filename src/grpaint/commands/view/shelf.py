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
from grpaint.run.record import is_run, read_outline, silent_s
from grpaint.storage.files import numbered

FILES = ("run.json", "run.toml", METRICS, EVALUATIONS, PICTURES)  # those that change while a run goes on
MOST_AGE_S = 0.5  # how old the table may be: many tabs share one look at the disk
MOST_PAGES = 12  # pages and their data in memory

T = TypeVar("T")


class Shelf:
    """The run folders directly inside ``folder``; hidden ones, and links that lead out of it, are left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder.resolve()
        self._lock, self._look_time = threading.Lock(), 0.0
        self._folders: dict[str, Path] = {}
        self._stamps: dict[str, str] = {}
        self._outlines: dict[str, tuple[str, RunRecord]] = {}
        self._pages: OrderedDict[Any, Any] = OrderedDict()

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, in the order of their names."""
        with self._lock:
            self._look()
            return [self._row(name) for name in sorted(self._folders)]

    def stamp(self, name: str) -> str | None:
        """Return a text that changes whenever a run's files or its state do; None if there is no such run."""
        with self._lock:
            self._look()
            return self._row(name)["stamp"] if name in self._folders else None

    def folder_of(self, name: str) -> Path | None:
        """Return the folder of a run, None if there is no such run; ``name`` is looked up and never part of a path."""
        with self._lock:
            self._look()
            return self._folders.get(name)

    def made(self, key: Any, stamp: str, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, or returned the last time if the runs' ``stamp`` is still the same."""
        with self._lock:
            if key in self._pages and self._pages[key][0] == stamp:
                self._pages.move_to_end(key)
                return self._pages[key][1]
        value = make()
        with self._lock:
            self._pages[key] = (stamp, value)
            self._pages.move_to_end(key)
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        return value

    def _look(self) -> None:
        """List the folder and the times and sizes of the runs' files, unless that was done just now."""
        if time.monotonic() - self._look_time < MOST_AGE_S:
            return
        found = {without_surrogates(path.name): path for path in self._run_folders()}
        self._stamps = {name: _stamp(path) for name, path in found.items()}
        self._folders = found
        self._outlines = {name: outline for name, outline in self._outlines.items() if name in found}
        self._look_time = time.monotonic()

    def _run_folders(self) -> list[Path]:
        try:
            entries = sorted(self.folder.iterdir())
        except OSError:  # it has been removed, or its disk is away for a while
            return []
        return [path for path in entries if not path.name.startswith(".") and self._is_shown(path)]

    def _is_shown(self, run: Path) -> bool:
        """Return whether a folder is a run, and all that is read of it lies inside the shelf's, its links followed."""
        rollout = run / "samples" / ROLLOUT
        try:
            if not is_run(run):
                return False
            links = [run] if run.is_symlink() else []
            for folder in (run, run / "samples", rollout, *numbered(rollout)[-1:]):
                if folder.is_dir():
                    with os.scandir(folder) as entries:
                        links += [Path(entry) for entry in entries if entry.is_symlink()]
            return all(link.resolve().is_relative_to(self._root) for link in links)
        except (OSError, RuntimeError):  # a folder of somebody else's, links in a circle
            return False

    def _row(self, name: str) -> dict[str, Any]:
        stamp = self._stamps[name]
        known, outline = self._outlines.get(name, ("", None))
        if outline is None or known != stamp:
            outline = read_outline(self._folders[name])
            self._outlines[name] = (stamp, outline)
        row = run_row(replace(outline, silent_s=silent_s(self._folders[name])), stamp)
        return row | {"stamp": f"{stamp}-{row['state']}"}  # a run that was killed changes its state and no file


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
