"""Captioned images in parquet files, and in the arrow files of Hugging Face data sets on disk."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.core.text import one_line, printable
from grpaint.images import cache
from grpaint.images.pictures import BadImage
from grpaint.images.sources import ImageEntry, read_image_file
from grpaint.storage.confined import inside
from grpaint.storage.reading import parse_json, read_object

CHECK = Path(__file__).with_name("table_check.py")


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
        out, files = [], self._ordered_files()
        _check_files(files)
        for file in files:
            for group, row_count in enumerate(_group_sizes(file)):
                table = _read_group(file, group)
                if len(set(table.column_names)) < len(table.column_names):
                    raise ConfigError(f"{file}: two columns of one name; rename one: {', '.join(table.column_names)}.")
                if self.image not in table.column_names:
                    names = ", ".join(table.column_names)
                    raise ConfigError(f'{file}: no column "{self.image}"; set data.image to one of: {names}.')
                rows = table.drop_columns([self.image]).to_pylist() or [{} for _ in range(row_count)]
                name = printable(file.name)
                out += [ImageEntry(f"{name}:{group}:{n}", file, (group, n), row) for n, row in enumerate(rows)]
        return out

    def _ordered_files(self) -> list[Path]:
        """Return the files in their order; for a data set on disk, those that its state.json lists."""
        state_file = self.path / "state.json"
        if not state_file.is_file():
            return self.files
        state = read_object(state_file)
        if state.get("_indices_data_files"):
            raise ConfigError(
                f'{self.key} = "{self.path}": saved with an indices mapping (shuffled or filtered); call '
                "flatten_indices() before save_to_disk()."
            )
        present = {file.name: file for file in self.files}
        items = state.get("_data_files")
        names = [item.get("filename") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        files = [present[name] for name in names if isinstance(name, str) and name in present]
        if not files or not isinstance(items, list) or len(files) < len(items):
            raise ConfigError(f"{state_file}: its _data_files must list .arrow files beside it; save the set again.")
        return files

    def read(self, entry: ImageEntry) -> bytes:
        group, row = entry.position
        try:
            cell = _read_group(entry.file, group)[self.image][row].as_py()
        except (OSError, ValueError, IndexError):  # damaged since it was checked
            raise BadImage("cut short or corrupt") from None
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            return read_image_file(inside(entry.file.parent, cell, f"{entry.file}: {entry.name}"))
        if not isinstance(cell, bytes):
            raise BadImage("no image in its column")
        return cell


def _check_files(files: list[Path]) -> None:
    """Check that every value of the files can be read, once for each file until it changes.

    A damaged file may end the process that reads it, so the check has one of its own.

    Raises:
        ConfigError: one cannot be used, with the reason.
    """
    _pyarrow()
    subjects = {file: f"table {file.resolve()}" for file in files}
    unchecked = [file for file in files if cache.read(subjects[file]).get("whole") != cache.stamp(file)]
    if not unchecked:
        return
    command = [sys.executable, "-P", str(CHECK), *map(str, unchecked)]
    process = subprocess.run(command, capture_output=True, check=False)
    problems = [parse_json(line, str(CHECK))[1] for line in process.stdout.decode().splitlines()]
    for file, problem in zip(unchecked, problems, strict=False):
        if problem:
            raise ConfigError(f"{file}: cannot be read as a table: {printable(problem)}. Copy or make it again.")
        cache.write(subjects[file], {"whole": cache.stamp(file)})
    if len(problems) < len(unchecked):
        file, code = unchecked[len(problems)], process.returncode
        if code > 0:  # it ended by itself, so not for the file's sake
            reason = one_line(process.stderr.decode("utf-8", "replace")[-300:], 300)
            raise ConfigError(f"{file}: the process that checks tables ended with code {code}: {reason}")
        raise ConfigError(f"{file}: damaged so that reading it ends a process (code {code}). Copy or make it again.")


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
