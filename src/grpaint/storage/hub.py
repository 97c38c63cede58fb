"""Files of a hub repository, through the hub's own client and cache: names, sizes, hashes, downloads.

Only the hub's client opens network connections here. A repository is named ``owner/name``, or ``owner/name@revision``
with a commit, a branch or a tag.
"""

import os
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
class HubFile:
    """A file of a hub repository: its path there, its size in bytes, and its SHA-256 (None for small files)."""

    name: str
    size: int
    sha256: str | None


def is_hub_id(base: str) -> bool:
    """Whether a name means ``owner/name`` or ``owner/name@revision`` on the hub, and not a local path."""
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", base) and not base.startswith((".", "~"))
    looks_like_id = looks_like_id and not base.endswith((".safetensors", ".ckpt")) and ".." not in base.split("/")
    return bool(looks_like_id) and not os.path.exists(base) and not os.path.isdir(os.path.dirname(base))


def at_commit(base: str, commit: str) -> str:
    """Return the repository's name with this commit as its revision, replacing the one it had."""
    return f"{base.partition('@')[0]}@{commit}"


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name matches one of the shell ``patterns``, such as ``*.json``."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _shorten(error: Exception) -> str:
    return textwrap.shorten(str(error), 160, placeholder=" ..")


def snapshot(
    key: str, base: str, patterns: Sequence[str], *, without: Sequence[str] = (), to: Path | None = None
) -> Path:
    """Return a folder with those files of a repository that match ``patterns`` and none of ``without``.

    It is the hub client's cache folder, which is named by the commit, or ``to``. Missing files are downloaded. ``key``
    is the setting that names the repository, for the error.

    Raises:
        ConfigError: if files are missing on this machine, and the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    filters: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(without)}
    name, _, revision = base.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_dir=to, **filters))
    except Exception as error:  # the client's HTTP library has error types of its own
        reason = _shorten(error)
        raise ConfigError(
            f'{key} = "{base}": not on this machine, and the hub did not deliver it ({reason}). On a machine with a '
            f"network connection: grpaint fetch RECIPE --to DIR, then {key} = DIR/NAME."
        ) from error


def repository_files(base: str) -> tuple[str, list[HubFile]]:
    """List the files of a repository at its current commit; returns its name with that commit, and the files.

    Raises:
        ConfigError: if the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    name, _, revision = base.partition("@")
    try:
        model = HfApi().model_info(name, revision=revision or None, files_metadata=True)
    except Exception as error:  # the client's HTTP library has error types of its own
        raise ConfigError(f"{base}: the hub does not answer ({_shorten(error)}).") from error
    files = [HubFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else None) for f in model.siblings or []]
    return at_commit(base, model.sha) if model.sha else base, files


def download_files(key: str, base: str, files: Sequence[HubFile], to: Path) -> Path:
    """Download files of a repository into the folder ``to/NAME`` and verify their sizes and hashes; returns it.

    Raises:
        ConfigError: if the hub does not answer.
        CheckpointError: if a file's size or SHA-256 differs from what the hub lists.
    """
    folder = to / base.partition("@")[0].rpartition("/")[2]
    folder = snapshot(key, base, [file.name for file in files], to=folder)
    for file in files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else -1
        if size != file.size:
            raise CheckpointError(f"{path}: {size} bytes, the hub lists {file.size}. Fetch it again.")
        if file.sha256 and (sha256 := digest(path)) != file.sha256:
            raise CheckpointError(f"{path}: SHA-256 {sha256}, the hub lists {file.sha256}. Fetch it again.")
    return folder
