"""Which kind of source a path is."""

from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.sources import Folder, Shards, Source
from grpaint.images.tables import Tables


def open_source(path: Path, caption: str, image: str, key: str) -> Source:
    """The source that ``path`` is; ``caption`` and ``image`` name columns.

    Raises:
        ConfigError: where it is none, or more than one.
    """
    if not path.exists():
        raise ConfigError(f'{key} = "{path}": no such file or folder.')
    kinds: dict[str, list[Path]] = {suffix: _with(path, suffix) for suffix in (".tar", ".parquet", ".arrow")}
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(str(place.parent) for place in sorted(path.glob("*/state.json")))
        raise ConfigError(f'{key} = "{path}": a data set with splits; name one of them: {splits}.')
    found = {suffix: files for suffix, files in kinds.items() if files}
    if len(found) > 1:
        raise ConfigError(f'{key} = "{path}": holds {" and ".join(found)} files; name a folder with one kind.')
    for suffix, files in found.items():
        return Shards(files, caption) if suffix == ".tar" else Tables(path, files, image, key)
    if path.is_dir():
        return Folder(path, caption)
    raise ConfigError(f'{key} = "{path}": name a folder, a .tar (not compressed) or a .parquet file.')


def _with(path: Path, suffix: str) -> list[Path]:
    return sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path] if path.suffix == suffix else []
