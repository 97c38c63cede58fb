"""Where a base model's files are: a local folder, or a hub's repository by its own cache. No other socket opens."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from grpaint.backends.families.folder import Folder
from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra
from grpaint.core.files import check_weights, digest

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
NOT = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*")


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


def located(base: str, *, weights: bool, key: str = "model.base", held: Collection[str] = ()) -> Path:
    """The folder of a base model on this machine; a hub id's files come into the hub's cache where they are missing.

    ``weights``: with the weight files, but of the parts in ``held``; otherwise the settings alone. ``key`` is the
    setting that names it.

    Raises:
        ConfigError: where there is no such folder, or the hub cannot be reached or has no such repository.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(base):
        raise ConfigError(
            f'{key} = "{base}": no such folder. Name one in the diffusers layout, or a hub id OWNER/NAME.'
        )
    found = _snapshot(base, None, SETTINGS, key)
    if not weights:
        return found
    return _snapshot(_at(base, found.name), None, (*SETTINGS, *_weights(found, held)), key)


def pinned(base: str) -> str:
    """A hub id with the commit that it means now, as ``owner/name@commit``; anything else as it is.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    return _at(base, located(base, weights=False).name) if is_hub_id(base) else base


def _at(base: str, commit: str) -> str:
    return f"{base.partition('@')[0]}@{commit}"


def _weights(folder: Path, held: Collection[str] = ()) -> list[str]:
    """The weight files of the parts that ``model_index.json`` names, and no others that a repository may hold."""
    index = Folder(folder).settings("model_index.json")
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] and part not in held]
    return [f"{part}/*.safetensors" for part in parts]


def _snapshot(base: str, to: Path | None, patterns: Sequence[str], key: str = "model.base") -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    asked: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(NOT)}
    name, _, revision = base.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_dir=to, **asked))
    except Exception as error:  # its HTTP client's, too
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f'{key} = "{base}": not on this machine, and not to be had from the hub ({reason}). Where there is a '
            f"network: grpaint fetch RECIPE --to DIR, then {key} = DIR/NAME."
        ) from error


def listing(base: str, held: Collection[str] = ()) -> list[Remote]:
    """The files that a base model needs, with sizes and hashes, as the hub gives them; not the weights of ``held``.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("A model from a hub", "diffusers") from error
    name, _, revision = base.partition("@")
    try:
        found = HfApi().model_info(name, revision=revision or None, files_metadata=True).siblings or []
    except Exception as error:  # its HTTP client's, too
        raise ConfigError(f"{base}: the hub does not answer ({' '.join(str(error).split())[:160]}).") from error
    patterns = (*SETTINGS, *_weights(_snapshot(base, None, SETTINGS), held))
    files = {
        part.rfilename: Remote(part.rfilename, part.size or 0, part.lfs.sha256 if part.lfs else None) for part in found
    }
    return [file for path, file in files.items() if _any(path, patterns) and not _any(path, NOT)]


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def fetch(base: str, to: Path, held: Collection[str] = ()) -> Path:
    """Download a base model into ``to/NAME``, and hold every file to its size and hash.

    Raises:
        ConfigError: where the hub does not answer.
        CheckpointError: where a file is not what the hub says.
    """
    base = pinned(base)
    wanted = listing(base, held)
    folder = _snapshot(base, to / base.partition("@")[0].rpartition("/")[2], [file.name for file in wanted])
    for file in wanted:
        place = folder / file.name
        size = place.stat().st_size if place.is_file() else -1
        if size != file.size:
            raise CheckpointError(f"{place}: {size} bytes, the hub says {file.size}. Fetch it again.")
        if file.sha256:
            found = digest(place)
            if found != file.sha256:
                raise CheckpointError(f"{place}: SHA-256 {found}, the hub says {file.sha256}. Fetch it again.")
    return folder


def check_parts(folder: Path, without: Collection[str]) -> bool | None:
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
