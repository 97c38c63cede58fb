"""What was found out about files once, kept under the user's cache until they change."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1


def folder() -> Path:
    """Where it is kept: ``$XDG_CACHE_HOME/grpaint/images``, else under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpaint/images"


def stamp(file: Path) -> list[int]:
    """Size and time of change: what is known of a file holds as long as these stay."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _place(subject: str) -> Path:
    return folder() / f"{hashlib.blake2b(subject.encode(), digest_size=12).hexdigest()}.json"


def read(subject: str) -> dict[str, Any]:
    """What is kept under ``subject``; nothing where that cannot be read, for it can be found out again."""
    try:
        kept = json.loads(_place(subject).read_text(encoding="utf-8"))
        return dict(kept["found"]) if kept["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write(subject: str, found: Mapping[str, Any]) -> None:
    """Keep it; a machine whose home cannot be written goes without."""
    place = _place(subject)
    aside = place.with_name(f"{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({"version": VERSION, "found": found}), encoding="utf-8")
        aside.replace(place)
