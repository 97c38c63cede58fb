"""The files of a data set: everything below a folder, links followed, by kind or with the reason why it is left out."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from grpaint.core.text import printable
from grpaint.images.naming import (
    HIDDEN,
    LINK_TO_NOTHING,
    MISNAMED,
    MISNAMED_TABLE,
    NOT_REGULAR,
    Kind,
    is_hidden,
    kind_of,
    reason_left_out,
)

CIRCLE = "a link back to a folder that is read anyway, or that holds this one"
_STORES = {".git", ".hg", ".svn"}  # of version control: no copies of anybody's, and huge


@dataclass(frozen=True)
class Walk:
    """The files at ``root`` by kind, and the names of those that look like an image but are left out, with the reason.

    Names are relative to the root. Folders that cannot be read, or would be read twice, are left out by name too.
    """

    root: Path
    files: dict[Kind, list[Path]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, *kinds: Kind) -> list[Path]:
        """List the files of some kinds in the order of their paths."""
        return sorted(file for kind in kinds for file in self.files.get(kind, ()))

    def leave_out(self, file: Path, reason: str) -> None:
        """Add a file or folder to what is left out."""
        self.left_out[relative_name(file, self.root)] = reason


def relative_name(file: Path, root: Path) -> str:
    """Return a file's name from ``root`` on, as it is shown; the file's own if it is the root."""
    return printable(str(file.relative_to(root)) if file != root else file.name)


def walk(root: Path) -> Walk:
    """List what is at ``root``: a folder with all that is below it, or a single file.

    Links to folders are followed after all other folders, so that a folder keeps its own name; a circle of them ends.
    """
    out = Walk(root)
    if not root.is_dir():
        out.files[kind_of(root.name)] = [root] if root.is_file() else []
        return out
    read_or_around = {*root.resolve().parents}
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        real = folder.resolve()
        if real in read_or_around:
            out.leave_out(folder, CIRCLE)
            continue
        read_or_around.add(real)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            out.leave_out(folder, f"cannot be read: {error.strerror}")
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            if _is(entry.is_dir) and entry.name not in _STORES:
                (links if entry.is_symlink() else folders).append(folder / entry.name)
        hidden = any(is_hidden(part) for part in folder.relative_to(root).parts)
        _take_in(out, folder, [entry for entry in entries if not _is(entry.is_dir)], hidden)
    _forget_linked(out)
    return out


def _forget_linked(out: Walk) -> None:
    """Take what a link of a better name leads to out of what is left out: the hub's cache names files by their hash."""
    misnamed = [name for name, reason in out.left_out.items() if reason in (MISNAMED, MISNAMED_TABLE)]
    links = [file for files in out.files.values() for file in files if file.is_symlink()] if misnamed else []
    linked = {
        relative_name(target, out.root.resolve())
        for target in map(Path.resolve, links)
        if target.is_relative_to(out.root.resolve())
    }
    for name in linked.intersection(misnamed):
        del out.left_out[name]


def _take_in(out: Walk, folder: Path, entries: Sequence[os.DirEntry[str]], in_hidden: bool) -> None:
    """Sort the files of one folder into ``out``; ``in_hidden``: the folder, or one around it, is hidden."""
    stems = {PurePath(entry.name).stem for entry in entries if kind_of(entry.name) == "image"}
    for entry in entries:
        file, kind = folder / entry.name, kind_of(entry.name)
        if in_hidden or is_hidden(entry.name):
            if kind not in ("metadata", "splits", "other", "unknown"):
                out.leave_out(file, HIDDEN)
        elif not _is(entry.is_file) and kind not in ("metadata", "other", "unknown"):
            out.leave_out(file, NOT_REGULAR if os.path.exists(file) else LINK_TO_NOTHING)
        elif reason := reason_left_out(entry.name, stems, _head(entry) if kind == "unknown" else b""):
            out.leave_out(file, reason)
        else:
            out.files.setdefault(kind, []).append(file)


def _is(test: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; one that cannot be looked at (links in a circle, no permission) is of none."""
    try:
        return test()
    except OSError:
        return False


def _head(entry: os.DirEntry[str]) -> bytes:
    """The first bytes of a file, by which an image is known; none of a pipe, which would be waited for."""
    try:
        if entry.is_file():
            with open(entry.path, "rb") as opened:
                return opened.read(32)
    except OSError:
        pass
    return b""
