"""Captioned images in parquet files and in Hugging Face data sets on disk, which are arrow files."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.images.pictures import BadImage
from grpaint.images.sources import Entry, parse_json, read_text


@dataclass(frozen=True)
class Tables:
    """Parquet files, or the arrow files of a Hugging Face data set on disk; column ``image`` holds bytes or a path."""

    path: Path
    files: list[Path]
    image: str
    key: str

    def entries(self) -> list[Entry]:
        kept = self._state()
        out = []
        for file in kept:
            for group, batch in enumerate(_groups(file)):
                table = _read_group(file, group)
                if self.image not in table.column_names:
                    names = ", ".join(table.column_names)
                    raise ConfigError(f'{file}: no column "{self.image}"; set data.image to one of: {names}.')
                rows = table.drop_columns([self.image]).to_pylist() or [{} for _ in range(batch)]
                out += [Entry(f"{file.name}:{group}:{n}", file, (group, n), row) for n, row in enumerate(rows)]
        return out

    def _state(self) -> list[Path]:
        """The files in their order; a data set on disk says which are its own."""
        state = self.path / "state.json"
        if not state.is_file():
            return self.files
        said = parse_json(read_text(state), str(state))
        if said.get("_indices_data_files"):
            raise ConfigError(
                f'{self.key} = "{self.path}": saved with an indices mapping (shuffled or filtered); call '
                "flatten_indices() before save_to_disk()."
            )
        return [self.path / item["filename"] for item in said["_data_files"]]

    def read(self, entry: Entry) -> bytes:
        group, row = entry.place
        value = _read_group(entry.holder, group)[self.image][row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            file = entry.holder.parent / value
            if not file.is_file():
                raise BadImage(f"there is no file {value}")
            return file.read_bytes()
        if not isinstance(value, bytes):
            raise BadImage("no image in its column")
        return value


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("a data set in parquet or arrow files", "data") from None
    return pyarrow


@functools.cache
def _opened(file: Path) -> Any:
    """A parquet file, or the record batches of an arrow stream, mapped and not read."""
    arrow = _pyarrow()
    try:
        if file.suffix == ".parquet":
            return arrow.parquet.ParquetFile(file)
        with arrow.memory_map(str(file)) as mapped:
            return arrow.ipc.open_stream(mapped).read_all().to_batches()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a table: {str(error).splitlines()[0]}.") from None


def _groups(file: Path) -> list[int]:
    """Rows of each part of a table that is read at once."""
    opened = _opened(file)
    if file.suffix == ".parquet":
        return [opened.metadata.row_group(n).num_rows for n in range(opened.metadata.num_row_groups)]
    return [batch.num_rows for batch in opened]


@functools.lru_cache(maxsize=8)
def _read_group(file: Path, group: int) -> Any:
    opened = _opened(file)
    if file.suffix == ".parquet":
        return opened.read_row_group(group)
    return _pyarrow().Table.from_batches([opened[group]])
