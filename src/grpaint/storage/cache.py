"""The folders below the user's cache folder in which grpaint stores what it can compute again."""

import os
from pathlib import Path

from grpaint.storage.files import local_path


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/grpaint/NAME``, or ``~/.cache/grpaint/NAME`` if the variable is unset; not created."""
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "grpaint" / name
