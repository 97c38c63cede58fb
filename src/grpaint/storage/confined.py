"""Files that a data file names: only those in its own folder or below it are opened."""

import stat
from pathlib import Path

from grpaint.core.errors import ConfigError


def inside(folder: Path, name: str, location: str) -> Path:
    """Return the regular file ``name`` in ``folder`` or below it.

    ``location``: the file and line that name it, for the error.

    Raises:
        ConfigError: if the name is absolute or contains "..", a symbolic link leads out of the folder, or there is no
            such file, or it is a folder, a pipe or a device.
    """
    reason = _problem(folder, name)
    if reason:
        raise ConfigError(
            f"{location}: {name!r} {reason}; only files in the folder {folder} or below it are opened. Copy the file "
            "there, and name it relative to that folder."
        )
    return folder / name


def _problem(folder: Path, name: str) -> str:
    """Return why the file may not be opened; empty if it may."""
    path = Path(name)
    if path.is_absolute():
        return "is an absolute name"
    if ".." in path.parts:
        return 'contains ".."'
    try:
        target = (folder / path).resolve()
        if not target.is_relative_to(folder.resolve()):
            return f"is a link to {target}, outside"
        mode = target.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL or a surrogate; links in a circle
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return "" if stat.S_ISREG(mode) else "is no regular file"
