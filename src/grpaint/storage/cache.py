"""The folders below the user's cache folder in which grpaint stores what it can compute again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/grpaint/NAME``, or ``~/.cache/grpaint/NAME`` if the variable is unset; not created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grpaint" / name
