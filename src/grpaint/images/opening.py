"""Open the captioned images at a path: decide from its files which kind of source it is."""

from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.folder import ImageFolder
from grpaint.images.naming import TABLES
from grpaint.images.shards import ImageShards
from grpaint.images.sources import ImageSource
from grpaint.images.tables import ImageTables, with_column
from grpaint.images.walk import Walk, relative_name, walk


def open_source(path: Path, caption: str, image: str, key: str) -> ImageSource:
    """Return the source for the images at ``path`` and below it: a folder, tar shards, or parquet or arrow tables.

    ``caption`` and ``image`` are column names; ``key`` is the setting that names the path, for the errors.

    Raises:
        ConfigError: if the path does not exist, holds none of these, or holds several kinds.
    """
    if not path.exists():
        raise ConfigError(f'{key} = "{path}": no such file or folder.')
    files = walk(path)
    if splits := files.of("splits"):
        names = ", ".join(str(state.parent) for file in splits for state in sorted(file.parent.glob("*/state.json")))
        raise ConfigError(f'{key} = "{path}": a data set with splits; name one of them: {names}.')
    _pass_over_logs(files, image)
    _sort_metadata_tables(files, image)
    present = [suffix for suffix, kind in TABLES.items() if files.of(kind)]
    if len(present) > 1:
        raise ConfigError(f'{key} = "{path}": holds {" and ".join(present)} files; name a folder with one kind.')
    if ".tar" in present:
        _check_shards_alone(files, key)
        return ImageShards(files, caption)
    if present:
        return ImageTables(files, image, key)
    if path.is_dir():
        return ImageFolder(files, caption)
    if not path.is_file():
        raise ConfigError(f'{key} = "{path}": no regular file or folder (a pipe or a device).')
    raise ConfigError(f'{key} = "{path}": name a folder, a .tar (not compressed) or a .parquet file.')


def _pass_over_logs(files: Walk, image: str) -> None:
    """Drop the tables that img2dataset writes about a shard or folder of the same name: they hold no images."""
    shards = {file.with_suffix("") for file in files.of("shard")}
    folders = {folder for file in files.of("image") for folder in file.parents}
    tables, owners = files.of("parquet"), shards | folders
    named_alike = [file for file in tables if file.with_suffix("") in owners]
    logs = {*named_alike} - {*with_column(named_alike, image)}
    files.files["parquet"] = [file for file in tables if file not in logs]


def _sort_metadata_tables(files: Walk, image: str) -> None:
    """Take a metadata.parquet for a table where no images are beside it, or its file names are the image column."""
    tables = [file for file in files.of("metadata") if file.suffix.lower() == ".parquet"]
    if image == "file_name" or not files.of("image"):
        files.files["parquet"] = files.of("parquet") + tables
        files.files["metadata"] = [file for file in files.of("metadata") if file not in tables]


def _check_shards_alone(files: Walk, key: str) -> None:
    if images := files.of("image"):
        raise ConfigError(
            f'{key} = "{files.root}": holds .tar files and {len(images)} images, such as '
            f"{relative_name(images[0], files.root)}; name a folder with one kind, or the .tar itself."
        )
