"""Files that a data file names: only those in its own folder or below it are opened."""

import stat
import unicodedata
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable


def as_spelt(folder: Path, name: str) -> str:
    """Return the name of a file as ``folder`` spells it, with the separators of Windows or other accents if need be.

    macOS spells accents as characters of their own. A name that no file has is returned as it is.
    """
    plain = name.replace("\\", "/")
    names = [name, plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)]
    return next((spelling for spelling in names if _exists(folder / spelling)), name)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def inside(folder: Path, name: str, location: str, *, links: bool = False) -> Path:
    """Return the path of the file ``name`` in ``folder`` or below it; whether it exists is for the caller to tell.

    ``location``: the file and line that name it, for the error. ``links``: a symbolic link may lead out, as for
    pictures that are used without being named too.

    Raises:
        ConfigError: if the name is absolute or contains "..", a symbolic link leads out of the folder, or it is a
            folder, a pipe or a device.
    """
    reason = _problem(folder, name, links)
    if reason:
        raise ConfigError(
            f'{location}: "{printable(name, 200)}" {reason}; only files in the folder {folder} or below it are opened. '
            "Copy the file there, and name it relative to that folder."
        )
    return folder / name


def _problem(folder: Path, name: str, links: bool) -> str:
    """Return why the file may not be opened; empty if it may, or does not exist."""
    path = Path(name)
    if path.is_absolute():
        return "is an absolute name"
    if ".." in path.parts:
        return 'contains ".."'
    try:
        target = (folder / path).resolve()
        if not (links or target.is_relative_to(folder.resolve())):
            return f"is a link to {target}, outside"
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL or a surrogate; links in a circle
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return "" if stat.S_ISREG(mode) else "is no regular file"
