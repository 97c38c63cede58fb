"""Where a base model's files are: a local folder, or a hub's repository by its own cache. No other socket opens."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpaint.backends.families.folder import Folder
from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra
from grpaint.core.files import check_weights

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
NOT = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*")


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


def located(base: str, *, weights: bool) -> Path:
    """The folder of a base model on this machine; a hub id's files come into the hub's cache where they are missing.

    ``weights``: with the weight files, otherwise the settings alone.

    Raises:
        ConfigError: where there is no such folder, or the hub cannot be reached or has no such repository.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(base):
        raise ConfigError(
            f'model.base = "{base}": no such folder. Name one in the diffusers layout, or a hub id OWNER/NAME.'
        )
    found = _snapshot(base, None, SETTINGS)
    return _snapshot(base, None, (*SETTINGS, *_weights(found))) if weights else found


def _weights(folder: Path) -> list[str]:
    """The weight files of the parts that ``model_index.json`` names, and no others that a repository may hold."""
    index = Folder(folder).settings("model_index.json")
    return [f"{part}/*.safetensors" for part, kind in index.items() if isinstance(kind, list) and kind[0]]


def _snapshot(name: str, to: Path | None, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    asked: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(NOT)}
    try:
        return Path(snapshot_download(name, local_dir=to, **asked))
    except Exception as error:  # its HTTP client's, too
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f'model.base = "{name}": not on this machine, and not to be had from the hub ({reason}). Where there is a '
            "network: grpaint fetch RECIPE --to DIR, then model.base = DIR/NAME."
        ) from error


def listing(name: str) -> list[Remote]:
    """The files that a base model needs, with sizes and hashes, as the hub gives them.

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
    patterns = (*SETTINGS, *_weights(_snapshot(name, None, SETTINGS)))
    files = {
        part.rfilename: Remote(part.rfilename, part.size or 0, part.lfs.sha256 if part.lfs else None) for part in found
    }
    return [file for path, file in files.items() if _any(path, patterns) and not _any(path, NOT)]


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def fetch(name: str, to: Path) -> Path:
    """Download a base model into ``to/NAME``, and hold every file to its size and hash.

    Raises:
        ConfigError: where the hub does not answer.
        CheckpointError: where a file is not what the hub says.
    """
    wanted = listing(name)
    folder = _snapshot(name, to / name.rpartition("/")[2], [file.name for file in wanted])
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


def check_parts(folder: Path, without: Mapping[str, Any]) -> bool | None:
    """Look at every weight file of a pipeline before any is opened; whether all parts have safetensors, else None.

    Raises:
        CheckpointError: where a part has no weights, a shard is missing, or a file is not what its name says.
    """
    safe = True
    index = Folder(folder).settings("model_index.json")
    for part, kind in index.items():
        place = folder / part
        if not (isinstance(kind, list) and kind[0]) or part in without or not (place / "config.json").is_file():
            continue
        for shards in place.glob("*.safetensors.index.json"):
            for shard in sorted(set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())):
                if not (place / shard).is_file():
                    raise CheckpointError(f"{place / shard}: not found, and {shards.name} lists it. Copy it too.")
        files = sorted(place.glob("*.safetensors"))
        for file in files:
            check_weights(file)
        if not files and not list(place.glob("*.bin")):
            raise CheckpointError(f"{place}: no weights there; a .safetensors file was expected.")
        safe = safe and bool(files)
    return safe or None  # None: diffusers may read .bin files, by torch.load(weights_only=True)
