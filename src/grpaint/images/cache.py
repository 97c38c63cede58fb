"""Facts about files that take long to find out, stored in the user's cache folder until the files change."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpaint.storage.atomic import write_atomic
from grpaint.storage.cache import cache_folder

VERSION = 2


def folder() -> Path:
    """Return the folder with the stored facts, one JSON file for each subject."""
    return cache_folder("images")


def stamp(file: Path) -> list[int]:
    """Return a file's size in bytes and modification time in ns; stored facts are valid until either changes."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _file(subject: str) -> Path:
    return folder() / f"{hashlib.blake2b(subject.encode(), digest_size=12).hexdigest()}.json"


def read(subject: str) -> dict[str, Any]:
    """Return the facts stored for ``subject``; none if they are damaged, since they can be found out again."""
    try:
        stored = json.loads(_file(subject).read_bytes())
        facts = dict(stored["found"]) if stored["version"] == VERSION else {}
        return facts if stored["sha256"] == _digest(facts) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write(subject: str, facts: Mapping[str, Any]) -> None:
    """Store the facts about ``subject``; does nothing if the cache folder cannot be written.

    Processes that write at once disturb nobody: each writes a file of its own and renames it, and the last one stays.
    """
    file = _file(subject)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"version": VERSION, "sha256": _digest(facts), "found": facts}))


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
