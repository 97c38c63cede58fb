"""Finding the weights that a reward's setting names: a file, a folder that has it, or a hub's repository."""

import functools
import json
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.reward import WeightSource
from grpaint.storage.files import check_start, check_weights
from grpaint.storage.hub import is_hub_id, snapshot

TOKENIZER = (
    "tokenizer_config.json",
    "config.json",  # which says whose tokenizer it is, where the first does not
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
MODEL = ("model.safetensors", "config.json")


def located(source: WeightSource) -> Path:
    """The file that a setting means, the first of those that the source asks for; its first bytes are looked at.

    Raises:
        ValueError: where there is none, with the way to get it.
        CheckpointError: where it is not what its name says.
    """
    first, given = source.files[0], Path(source.location).expanduser()
    if is_hub_id(source.location):
        try:
            file = _cached(source.setting, source.location, source.files) / first
        except ConfigError as error:
            raise ValueError(str(error)) from error
    else:
        file = given / first if given.is_dir() else given
    if not file.is_file():
        raise ValueError(f'{source.setting} = "{source.location}": no {first} there. {_way_out(source)}')
    check = check_weights if file.suffix == ".safetensors" else check_start
    check(file)
    return file.resolve()


def settings_beside(file: Path) -> dict[str, Any]:
    """The ``config.json`` that lies beside a weight file.

    Raises:
        CheckpointError: where it is missing or damaged.
    """
    place = file.parent / "config.json"
    try:
        return dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place}: not a readable JSON file ({error}). Copy it again.") from error


@functools.cache  # a hub's client looks at every file again
def _cached(setting: str, name: str, files: tuple[str, ...]) -> Path:
    return snapshot(setting, name, files)


def _way_out(source: WeightSource) -> str:
    if is_hub_id(source.origin):
        return (
            f"It is published at https://huggingface.co/{source.origin}: grpaint fetch RECIPE --to DIR downloads it "
            f'where {source.setting} = "{source.origin}".'
        )
    return f"Download it from {source.origin}, and name its file or folder."
