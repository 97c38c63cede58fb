"""Captioned images in parquet files, and in the arrow files of Hugging Face data sets on disk."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.images.pictures import BadImage
from grpaint.images.sources import ImageEntry
from grpaint.storage.reading import parse_json, read_text


@dataclass(frozen=True)
class ImageTables:
    """Images in parquet files, or in the arrow files of a Hugging Face data set on disk.

    Column ``image`` holds each image's bytes or a path relative to the table's folder; the other columns are fields.
    """

    path: Path
    files: list[Path]
    image: str
    key: str

    def entries(self) -> list[ImageEntry]:
        out = []
        for file in self._ordered_files():
            for group, row_count in enumerate(_group_sizes(file)):
                table = _read_group(file, group)
                if self.image not in table.column_names:
                    names = ", ".join(table.column_names)
                    raise ConfigError(f'{file}: no column "{self.image}"; set data.image to one of: {names}.')
                rows = table.drop_columns([self.image]).to_pylist() or [{} for _ in range(row_count)]
                out += [ImageEntry(f"{file.name}:{group}:{n}", file, (group, n), row) for n, row in enumerate(rows)]
        return out

    def _ordered_files(self) -> list[Path]:
        """Return the files in their order; for a data set on disk, those that its state.json lists."""
        state_file = self.path / "state.json"
        if not state_file.is_file():
            return self.files
        state = parse_json(read_text(state_file), str(state_file))
        if state.get("_indices_data_files"):
            raise ConfigError(
                f'{self.key} = "{self.path}": saved with an indices mapping (shuffled or filtered); call '
                "flatten_indices() before save_to_disk()."
            )
        return [self.path / item["filename"] for item in state["_data_files"]]

    def read(self, entry: ImageEntry) -> bytes:
        group, row = entry.position
        cell = _read_group(entry.file, group)[self.image][row].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            file = entry.file.parent / cell
            if not file.is_file():
                raise BadImage(f"there is no file {cell}")
            return file.read_bytes()
        if not isinstance(cell, bytes):
            raise BadImage("no image in its column")
        return cell


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("a data set in parquet or arrow files", "data") from None
    return pyarrow


@functools.cache
def _open_table(file: Path) -> Any:
    """Open a parquet file, or map the record batches of an arrow stream into memory without reading them."""
    arrow = _pyarrow()
    try:
        if file.suffix == ".parquet":
            return arrow.parquet.ParquetFile(file)
        with arrow.memory_map(str(file)) as buffer:
            return arrow.ipc.open_stream(buffer).read_all().to_batches()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a table: {str(error).splitlines()[0]}.") from None


def _group_sizes(file: Path) -> list[int]:
    """Count the rows of each row group (parquet) or record batch (arrow): the parts that are read at once."""
    table = _open_table(file)
    if file.suffix == ".parquet":
        return [table.metadata.row_group(n).num_rows for n in range(table.metadata.num_row_groups)]
    return [batch.num_rows for batch in table]


@functools.lru_cache(maxsize=8)
def _read_group(file: Path, group: int) -> Any:
    table = _open_table(file)
    if file.suffix == ".parquet":
        return table.read_row_group(group)
    return _pyarrow().Table.from_batches([table[group]])
