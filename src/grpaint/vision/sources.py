"""Finding the weights that a reward's setting names: a file, a folder that contains it, or a hub repository."""

import functools
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.reward import WeightSource
from grpaint.storage.files import check_start, check_weights, local_path
from grpaint.storage.hub import is_hub_id, snapshot
from grpaint.storage.reading import read_object

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "config.json",  # names the tokenizer's class if the first file does not
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
MODEL_FILES = ("model.safetensors", "config.json")


def weight_file(source: WeightSource) -> Path:
    """The local path of a source's first file, after a check of the file's first bytes.

    Raises:
        ValueError: if there is no such file; the message says where to get it.
        CheckpointError: if its content is not what its name says.
    """
    first, path = source.files[0], local_path(source.location)
    if is_hub_id(source.location):
        try:
            file = _snapshot(source.setting, source.location, source.files) / first
        except ConfigError as error:
            raise ValueError(str(error)) from error
    else:
        file = path / first if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f'{source.setting} = "{source.location}": no {first} there. {_where_to_get(source)}')
    check = check_weights if file.suffix == ".safetensors" else check_start
    check(file)
    return file.resolve()


def read_config(file: Path) -> dict[str, Any]:
    """Read the ``config.json`` in the folder of a weight file.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    config = file.parent / "config.json"
    try:
        return read_object(config)
    except ConfigError as error:
        raise CheckpointError(f"{error} Copy it again.") from error


@functools.cache  # the hub's client checks every file at each call
def _snapshot(setting: str, name: str, files: tuple[str, ...]) -> Path:
    return snapshot(setting, name, files)


def _where_to_get(source: WeightSource) -> str:
    if is_hub_id(source.origin):
        return (
            f"It is published at https://huggingface.co/{source.origin}: grpaint fetch RECIPE --to DIR downloads it "
            f'if {source.setting} = "{source.origin}".'
        )
    return f"Download it from {source.origin}, and name its file or folder."
