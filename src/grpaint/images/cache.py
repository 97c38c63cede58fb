"""Facts about files that take long to find out, stored in the user's cache folder until the files change."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.storage.atomic import write_atomic
from grpaint.storage.cache import cache_folder
from grpaint.storage.reading import parse_object, read_object

VERSION = 3


def folder() -> Path:
    """Return the folder with the stored facts, one JSON file for each subject."""
    return cache_folder("images")


def stamp(file: Path) -> list[int]:
    """Return a file's size in bytes and modification time in ns; stored facts are valid until either changes."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def _file(subject: str) -> Path:
    return folder() / f"{_digest(subject)}.json"


def read(subject: str) -> dict[str, Any]:
    """Return the facts stored for ``subject``; none if they are damaged, since they can be found out again."""
    try:
        stored = read_object(_file(subject))
        text = stored["facts"] if stored["version"] == VERSION else "{}"
        return parse_object(text, subject) if stored["digest"] == _digest(text) else {}
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}


def write(subject: str, facts: Mapping[str, Any]) -> None:
    """Store the facts about ``subject``; does nothing if the cache folder cannot be written."""
    file = _file(subject)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(facts)
        write_atomic(file, json.dumps({"version": VERSION, "digest": _digest(text), "facts": text}), follow=False)
