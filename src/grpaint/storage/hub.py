"""Files of a hub's repository, by its own client and cache: names, sizes, hashes. No other socket opens.

A repository is named ``owner/name``, or ``owner/name@revision`` with a commit, a branch or a tag.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra
from grpaint.storage.files import digest


@dataclass(frozen=True)
class Remote:
    """A file of a hub's repository; ``sha256`` is known of large ones."""

    name: str
    size: int
    sha256: str | None


def is_hub_id(base: str) -> bool:
    """Whether ``owner/name`` or ``owner/name@revision`` is meant, and not a path."""
    named = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", base) and not base.startswith((".", "~"))
    named = named and not base.endswith((".safetensors", ".ckpt"))
    return bool(named) and not Path(base).exists() and not Path(base).parent.is_dir()


def at(base: str, commit: str) -> str:
    """The same repository at a commit."""
    return f"{base.partition('@')[0]}@{commit}"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name is one of ``patterns``."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 160, placeholder=" ..")


def snapshot(
    key: str, base: str, patterns: Sequence[str], *, without: Sequence[str] = (), to: Path | None = None
) -> Path:
    """A folder with a repository's files of these names: the cache's, named by the commit, or ``to``.

    What is missing is downloaded. ``key`` is the setting that names the repository.

    Raises:
        ConfigError: where files are missing here and the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    asked: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(without)}
    name, _, revision = base.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_dir=to, **asked))
    except Exception as error:  # its HTTP client's, too
        reason = _brief(error)
        raise ConfigError(
            f'{key} = "{base}": not on this machine, and not to be had from the hub ({reason}). Where there is a '
            f"network: grpaint fetch RECIPE --to DIR, then {key} = DIR/NAME."
        ) from error


def listing(base: str) -> tuple[str, list[Remote]]:
    """A repository at the commit that it has now, and its files there, with sizes and hashes, as the hub gives them.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    name, _, revision = base.partition("@")
    try:
        found = HfApi().model_info(name, revision=revision or None, files_metadata=True)
    except Exception as error:  # its HTTP client's, too
        raise ConfigError(f"{base}: the hub does not answer ({_brief(error)}).") from error
    files = [Remote(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else None) for f in found.siblings or []]
    return at(base, found.sha) if found.sha else base, files


def fetch(key: str, base: str, wanted: Sequence[Remote], to: Path) -> Path:
    """Download files of a repository into ``to/NAME``, and hold each to its size and hash.

    Raises:
        ConfigError: where the hub does not answer.
        CheckpointError: where a file is not what the hub says.
    """
    folder = to / base.partition("@")[0].rpartition("/")[2]
    folder = snapshot(key, base, [file.name for file in wanted], to=folder)
    for file in wanted:
        place = folder / file.name
        size = place.stat().st_size if place.is_file() else -1
        if size != file.size:
            raise CheckpointError(f"{place}: {size} bytes, the hub says {file.size}. Fetch it again.")
        if file.sha256 and (found := digest(place)) != file.sha256:
            raise CheckpointError(f"{place}: SHA-256 {found}, the hub says {file.sha256}. Fetch it again.")
    return folder
