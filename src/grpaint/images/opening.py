"""Open the captioned images at a path: decide from its files which kind of source it is."""

from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.sources import ImageFolder, ImageShards, ImageSource
from grpaint.images.tables import ImageTables


def open_source(path: Path, caption: str, image: str, key: str) -> ImageSource:
    """Return the source for the images at ``path``: a folder, tar shards, or parquet or arrow tables.

    ``caption`` and ``image`` are column names; ``key`` is the setting that names the path, for the errors.

    Raises:
        ConfigError: if the path does not exist, holds none of these, or holds several kinds.
    """
    if not path.exists():
        raise ConfigError(f'{key} = "{path}": no such file or folder.')
    files_by_suffix = {suffix: _files_with_suffix(path, suffix) for suffix in (".tar", ".parquet", ".arrow")}
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(str(state.parent) for state in sorted(path.glob("*/state.json")))
        raise ConfigError(f'{key} = "{path}": a data set with splits; name one of them: {splits}.')
    present = {suffix: files for suffix, files in files_by_suffix.items() if files}
    if len(present) > 1:
        raise ConfigError(f'{key} = "{path}": holds {" and ".join(present)} files; name a folder with one kind.')
    for suffix, files in present.items():
        return ImageShards(files, caption) if suffix == ".tar" else ImageTables(path, files, image, key)
    if path.is_dir():
        return ImageFolder(path, caption)
    if not path.is_file():
        raise ConfigError(f'{key} = "{path}": no regular file or folder (a pipe or a device).')
    raise ConfigError(f'{key} = "{path}": name a folder, a .tar (not compressed) or a .parquet file.')


def _files_with_suffix(path: Path, suffix: str) -> list[Path]:
    """List the regular files at ``path``, or in it, whose names end in ``suffix``; a pipe would be waited for."""
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path] if path.suffix == suffix else []
    return [file for file in files if file.is_file()]
