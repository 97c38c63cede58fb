"""Files of a hub's repository, by its own client and cache: names, sizes, hashes. No other socket opens."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra


@dataclass(frozen=True)
class Remote:
    """A file of a hub's repository; ``sha256`` is known of large ones."""

    name: str
    size: int
    sha256: str | None


def is_hub_id(base: str) -> bool:
    """Whether ``owner/name`` is meant, and not a path."""
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith((".", "~"))
    return bool(named) and not Path(base).exists() and not Path(base).parent.is_dir()


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name is one of ``patterns``."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def snapshot(
    key: str, name: str, patterns: Sequence[str], *, without: Sequence[str] = (), to: Path | None = None
) -> Path:
    """A folder with a repository's files of these names: the cache, or ``to``; what is missing is downloaded.

    ``key`` is the setting that names the repository.

    Raises:
        ConfigError: where files are missing here and the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    asked: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(without)}
    try:
        return Path(snapshot_download(name, local_dir=to, **asked))
    except Exception as error:  # its HTTP client's, too
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f'{key} = "{name}": not on this machine, and not to be had from the hub ({reason}). Where there is a '
            f"network: grpaint fetch RECIPE --to DIR, then {key} = DIR/NAME."
        ) from error


def listing(name: str) -> list[Remote]:
    """The files of a repository, with sizes and hashes, as the hub gives them.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    try:
        found = HfApi().model_info(name, files_metadata=True).siblings or []
    except Exception as error:  # its HTTP client's, too
        raise ConfigError(f"{name}: the hub does not answer ({' '.join(str(error).split())[:160]}).") from error
    return [Remote(part.rfilename, part.size or 0, part.lfs.sha256 if part.lfs else None) for part in found]


def fetch(name: str, wanted: Sequence[Remote], to: Path) -> Path:
    """Download files of a repository into ``to/NAME``, and hold each to its size and hash.

    Raises:
        ConfigError: where the hub does not answer.
        CheckpointError: where a file is not what the hub says.
    """
    folder = snapshot(name, name, [file.name for file in wanted], to=to / name.rpartition("/")[2])
    for file in wanted:
        place = folder / file.name
        size = place.stat().st_size if place.is_file() else -1
        if size != file.size:
            raise CheckpointError(f"{place}: {size} bytes, the hub says {file.size}. Fetch it again.")
        if file.sha256:
            with place.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file.sha256:
                raise CheckpointError(f"{place}: SHA-256 {found}, the hub says {file.sha256}. Fetch it again.")
    return folder
