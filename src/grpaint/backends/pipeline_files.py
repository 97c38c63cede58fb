"""Where a base model's files are: a local folder, or a hub's repository by its own cache. No other socket opens."""

import json
from collections.abc import Collection
from pathlib import Path

from grpaint.backends.families.folder import Folder
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.storage import hub
from grpaint.storage.files import check_weights
from grpaint.storage.hub import is_hub_id

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
NOT = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*")


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
    found = hub.snapshot(key, base, SETTINGS, without=NOT)
    if not weights:
        return found
    return hub.snapshot(key, hub.at_commit(base, found.name), (*SETTINGS, *_weights(found, held)), without=NOT)


def pinned(base: str, key: str = "model.base") -> str:
    """A hub id with the commit that it means now, as ``owner/name@commit``; anything else as it is.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    return hub.at_commit(base, located(base, weights=False, key=key).name) if is_hub_id(base) else base


def _weights(folder: Path, held: Collection[str]) -> list[str]:
    """The weight files of the parts that ``model_index.json`` names, and no others that a repository may hold."""
    index = Folder(folder).settings("model_index.json")
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] and part not in held]
    return [f"{part}/*.safetensors" for part in parts]


def listing(base: str, key: str = "model.base", held: Collection[str] = ()) -> tuple[str, list[hub.HubFile]]:
    """A base model at its commit, and the files that it needs, but the weights of ``held``, as the hub gives them.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    name, files = hub.repository_files(base)
    patterns = (*SETTINGS, *_weights(hub.snapshot(key, name, SETTINGS, without=NOT), held))
    return name, [
        file for file in files if hub.matches_any(file.name, patterns) and not hub.matches_any(file.name, NOT)
    ]


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
