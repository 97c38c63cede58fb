"""Where a base model's files are: in a local folder, or in the hub's cache. Only the hub's library opens a socket."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from grpaint.backends.families.folder import PipelineFolder
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.storage import hub
from grpaint.storage.files import check_weights, local_path
from grpaint.storage.hub import is_hub_id
from grpaint.storage.reading import read_object

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
NOT = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*")


def pipeline_folder(base: str, *, weights: bool, key: str = "model.base", without: Collection[str] = ()) -> Path:
    """The folder of a base model on this machine; missing files of a hub id are downloaded into the hub's cache.

    ``weights``: include the weight files, except those of the parts in ``without``; otherwise the settings alone.
    ``key``: the setting that names the model, for messages.

    Raises:
        ConfigError: if there is no such folder, the hub cannot be reached, or it has no such repository.
    """
    folder = local_path(base)
    if folder.is_dir():
        return folder
    if not is_hub_id(base):
        raise ConfigError(
            f'{key} = "{base}": no such folder. Name one in the diffusers layout, or a hub id OWNER/NAME.'
        )
    snapshot = hub.snapshot(key, base, SETTINGS, without=NOT)
    if not weights:
        return snapshot
    patterns = (*SETTINGS, *_weight_patterns(snapshot, without))
    return hub.snapshot(key, hub.at_commit(base, snapshot.name), patterns, without=NOT)


def pin_commit(base: str, key: str = "model.base") -> str:
    """A hub id with the commit that it refers to now, as ``owner/name@commit``; any other name is returned unchanged.

    Raises:
        ConfigError: if the hub cannot be reached or has no such repository.
    """
    return hub.at_commit(base, pipeline_folder(base, weights=False, key=key).name) if is_hub_id(base) else base


def _weight_patterns(folder: Path, without: Collection[str]) -> list[str]:
    """The weight files of the parts in ``model_index.json``; a repository may contain others."""
    index = PipelineFolder(folder).settings("model_index.json")
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] and part not in without]
    return [f"{part}/*.safetensors" for part in parts]


def pipeline_listing(
    base: str, key: str = "model.base", without: Collection[str] = ()
) -> tuple[str, list[hub.HubFile]]:
    """A hub id with its commit, and the files there that a pipeline needs, except the weights of ``without``.

    Raises:
        ConfigError: if the hub cannot be reached or has no such repository, or a part there has no weights to read.
    """
    name, files = hub.repository_files(base)
    weight_patterns = _weight_patterns(hub.snapshot(key, name, SETTINGS, without=NOT), without)
    patterns = (*SETTINGS, *weight_patterns)
    needed = [file for file in files if hub.matches_any(file.name, patterns) and not hub.matches_any(file.name, NOT)]
    names, needed_names = [file.name for file in files], [file.name for file in needed]
    for pattern in weight_patterns:
        config = f"{pattern.partition('/')[0]}/config.json"  # of a network; tokenizers and schedulers have none
        if config in needed_names and not any(fnmatch(needed_name, pattern) for needed_name in needed_names):
            part = config.partition("/")[0]
            others = [file.partition("/")[2] for file in names if file.startswith(f"{part}/")]
            raise ConfigError(f'{key} = "{name}": no weights that are read in {part}/. {_other_weights(others)}')
    return name, needed


def _other_weights(names: Sequence[str]) -> str:
    """What a part's folder has in place of weights that are read, and the way out."""
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".msgpack", ".onnx", ".ckpt"))]
    present = f"There are {', '.join(sorted(others)[:4])}" if others else "There are none of another kind either"
    variant = next((word for word in ("fp16", "bf16", "non_ema") if any(f".{word}" in name for name in others)), None)
    argument = f', variant="{variant}"' if variant else ""
    return (
        f"{present}; .safetensors without a variant are read. Open it with diffusers, from_pretrained(NAME{argument}), "
        "then save_pretrained(FOLDER), and set model.base = FOLDER."
    )


def listed_shards(shard_index: Path) -> list[str]:
    """The names of the weight files that an index lists.

    Raises:
        CheckpointError: if it lists none, or something other than names of files beside it.
    """
    listed = read_object(shard_index).get("weight_map")
    shards = set(map(str, listed.values())) if isinstance(listed, dict) else set()
    if not shards or any(shard != Path(shard).name for shard in shards):
        raise CheckpointError(f"{shard_index}: its weight_map must name files beside it. Copy it again.")
    return sorted(shards)


def check_parts(folder: Path, without: Collection[str]) -> bool | None:
    """Check a pipeline's weight files before any is opened; True if all parts have safetensors files, else None.

    Raises:
        CheckpointError: if a part has no weights, a shard is missing, or a file is not what its name says.
    """
    all_safetensors = True
    index = PipelineFolder(folder).settings("model_index.json")
    for part, kind in index.items():
        part_folder = folder / part
        is_listed = isinstance(kind, list) and kind[0] and part not in without
        if not is_listed or not (part_folder / "config.json").is_file():
            continue
        for shard_index in part_folder.glob("*.safetensors.index.json"):
            for shard in listed_shards(shard_index):
                if not (part_folder / shard).is_file():
                    raise CheckpointError(
                        f"{part_folder / shard}: not found, and {shard_index.name} lists it. Copy it too."
                    )
        names = sorted(file.name for file in part_folder.iterdir())
        usable = [name for name in names if not hub.matches_any(name, NOT)]
        files = [part_folder / name for name in usable if name.endswith(".safetensors")]
        for file in files:
            check_weights(file)
        if not files and not any(name.endswith(".bin") for name in usable):
            raise CheckpointError(f"{part_folder}: no weights there that are read. {_other_weights(names)}")
        all_safetensors = all_safetensors and bool(files)
    return all_safetensors or None  # None: diffusers may read .bin files, by torch.load(weights_only=True)
