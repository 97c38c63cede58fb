"""Where a base model's files are: a local folder, or a hub's repository by its own cache. No other socket opens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpaint.backends.families.folder import Folder
from grpaint.core import hub
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.files import check_weights
from grpaint.core.hub import is_hub_id

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
NOT = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*")


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
    patterns = _patterns(base) if weights else SETTINGS
    return hub.snapshot("model.base", base, patterns, without=NOT)


def _patterns(name: str) -> tuple[str, ...]:
    """The settings, the weight files of the parts that ``model_index.json`` names, and no others."""
    index = Folder(hub.snapshot("model.base", name, SETTINGS, without=NOT)).settings("model_index.json")
    return (*SETTINGS, *(f"{part}/*.safetensors" for part, kind in index.items() if isinstance(kind, list) and kind[0]))


def listing(name: str) -> list[hub.Remote]:
    """The files that a base model needs, with sizes and hashes, as the hub gives them.

    Raises:
        ConfigError: where the hub cannot be reached or has no such repository.
    """
    files, patterns = hub.listing(name), _patterns(name)
    return [file for file in files if hub.matches(file.name, patterns) and not hub.matches(file.name, NOT)]


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
