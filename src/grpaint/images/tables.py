"""Captioned images in parquet files, and in the arrow files of Hugging Face data sets on disk."""

import base64
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.core.text import one_line, printable
from grpaint.images import cache
from grpaint.images.pictures import BadImage, looks_like_picture
from grpaint.images.sources import ImageEntry, read_image_file
from grpaint.images.walk import Walk, relative_name
from grpaint.storage.confined import as_spelt, inside
from grpaint.storage.reading import parse_json, read_object

CHECK = Path(__file__).with_name("table_check.py")
ARROW_FILE = b"ARROW1"  # begins the other one of arrow's two formats; those of data sets are streams
ADDRESS = "an address, and nothing is downloaded; name its file"
NOT_LISTED = "not listed in the state.json beside it"
MOST_PATH = 4096  # characters


@dataclass(frozen=True)
class ImageTables:
    """Images in parquet files, or in the arrow files of Hugging Face data sets on disk.

    Column ``image`` holds each image's bytes, also as base64, or a path relative to the table's folder; the other
    columns are fields. ``key`` is the setting that errors name.
    """

    walk: Walk
    image: str
    key: str

    def entries(self) -> list[ImageEntry]:
        files = self._ordered_files()
        _check_files(files)
        out = []
        for file in files:
            name = relative_name(file, self.walk.root)
            for group in range(len(_group_sizes(file))):
                rows = _fields(file, group, self.image)
                out += [ImageEntry(f"{name}:{group}:{n}", file, (group, n), row) for n, row in enumerate(rows)]
        self._check_images_beside(out)
        return out

    def left_out(self) -> Mapping[str, str]:
        others = {*self.walk.of("parquet", "arrow")} - {*self._ordered_files()}
        return self.walk.left_out | {relative_name(file, self.walk.root): NOT_LISTED for file in sorted(others)}

    def _check_images_beside(self, entries: Sequence[ImageEntry]) -> None:
        """Check that each image file beside the tables is one that a row of them names."""
        beside = {*self.walk.of("image")}
        if not beside:
            return
        unnamed = sorted(beside.difference(filter(None, map(self._named_file, entries))))
        if unnamed:
            raise ConfigError(
                f'{self.key} = "{self.walk.root}": holds tables and {len(unnamed)} images that no row of them names, '
                f"such as {relative_name(unnamed[0], self.walk.root)}; name a folder with one kind, or the table."
            )

    def _ordered_files(self) -> list[Path]:
        """Return the files in their order; of a data set on disk, those that its state.json lists."""
        files = self.walk.of("parquet", "arrow")
        ordered = []
        for folder in dict.fromkeys(file.parent for file in files):
            present = [file for file in files if file.parent == folder]
            state_file = folder / "state.json"
            ordered += (
                self._listed(state_file, present) if self.walk.root.is_dir() and state_file.is_file() else present
            )
        return ordered

    def _listed(self, state_file: Path, files: list[Path]) -> list[Path]:
        state = read_object(state_file)
        if state.get("_indices_data_files"):
            raise ConfigError(
                f'{self.key} = "{state_file.parent}": saved with an indices mapping (shuffled or filtered); call '
                "flatten_indices() before save_to_disk()."
            )
        present = {file.name: file for file in files}
        items = state.get("_data_files")
        names = [item.get("filename") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        listed = [present[name] for name in names if isinstance(name, str) and name in present]
        if not listed or not isinstance(items, list) or len(listed) < len(items):
            raise ConfigError(f"{state_file}: its _data_files must list .arrow files beside it; save the set again.")
        return listed

    def _content(self, entry: ImageEntry) -> bytes | Path | None:
        """The image of a row: its bytes, or the file that it names; None if there is none."""
        group, row = entry.position
        try:
            cell = _read_group(entry.file, group, (self.image,))[self.image][row].as_py()
        except (ConfigError, OSError, ValueError, IndexError):  # damaged since it was checked
            raise BadImage("cut short or corrupt") from None
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell if looks_like_picture(cell[:32]) else _base64_picture(cell.decode("ascii", "replace")) or cell
        if not isinstance(cell, str) or not cell:
            return None
        if cell.startswith(("http://", "https://")):
            raise BadImage(ADDRESS)
        decoded = _base64_picture(cell)
        if decoded or cell.startswith("data:") or len(cell) > MOST_PATH:
            return decoded
        folder = entry.file.parent
        return inside(folder, as_spelt(folder, cell), f"{entry.file}: {entry.name}")

    def _named_file(self, entry: ImageEntry) -> Path | None:
        try:
            content = self._content(entry)
        except BadImage:
            return None
        return content if isinstance(content, Path) else None

    def read(self, entry: ImageEntry) -> bytes:
        content = self._content(entry)
        if content is None:
            raise BadImage("no image in its column")
        return read_image_file(content) if isinstance(content, Path) else content


def _base64_picture(text: str) -> bytes | None:
    """Decode an image in base64, also in lines, as a data URL or in the alphabet of URLs; None if it is none."""
    begin, comma, rest = text.partition(",")
    body = rest if comma and begin.startswith("data:") else text
    plain = "".join(body.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        raw = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return None
    return raw if looks_like_picture(raw[:32]) else None


def _fields(file: Path, group: int, image: str) -> list[dict[str, Any]]:
    """Return the columns other than ``image`` of each row of a row group."""
    table = _read_group(file, group)
    if len(set(table.column_names)) < len(table.column_names):
        raise ConfigError(f"{file}: two columns of one name; rename one: {', '.join(table.column_names)}.")
    if image not in table.column_names:
        names = ", ".join(table.column_names)
        raise ConfigError(f'{file}: no column "{image}"; set data.image to one of: {names}.')
    return table.drop_columns([image]).to_pylist() or [{} for _ in range(table.num_rows)]


def table_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a parquet file without images, with their numbers from 1 on.

    Raises:
        ConfigError: the file cannot be read.
    """
    _check_files([file])
    rows = (row for group in range(len(_group_sizes(file))) for row in _read_group(file, group).to_pylist())
    yield from enumerate(rows, 1)


def with_column(files: list[Path], name: str) -> list[Path]:
    """Return those of some parquet files that have a column of this name; none if pyarrow is not installed.

    Raises:
        ConfigError: one of them cannot be read.
    """
    try:
        _check_files(files)
    except MissingExtra:
        return []
    return [file for file in files if name in _open_table(file).schema_arrow.names]


def _check_files(files: list[Path]) -> None:
    """Check that every value of the files can be read, once for each file until it changes.

    A damaged file may end the process that reads it, so the check has one of its own.

    Raises:
        ConfigError: one cannot be used, with the reason.
    """
    if not files:
        return
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
        if file.suffix.lower() == ".parquet":
            return arrow.parquet.ParquetFile(file)
        with arrow.memory_map(str(file)) as buffer:
            is_file = buffer.read(6) == ARROW_FILE
            buffer.seek(0)
            opened = arrow.ipc.open_file(buffer) if is_file else arrow.ipc.open_stream(buffer)
            return opened.read_all().to_batches()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a table: {str(error).splitlines()[0]}.") from None


def _group_sizes(file: Path) -> list[int]:
    """Count the rows of each row group (parquet) or record batch (arrow): the parts that are read at once."""
    table = _open_table(file)
    if file.suffix.lower() == ".parquet":
        return [table.metadata.row_group(n).num_rows for n in range(table.metadata.num_row_groups)]
    return [batch.num_rows for batch in table]


@functools.lru_cache(maxsize=8)
def _read_group(file: Path, group: int, columns: tuple[str, ...] | None = None) -> Any:
    """Read a row group as a table; of a parquet file only ``columns``, if they are named."""
    table = _open_table(file)
    if file.suffix.lower() == ".parquet":
        try:
            return table.read_row_group(group, columns and [*columns])
        except (OSError, ValueError) as error:  # columns of unequal length pass the check, which reads in small batches
            reason = one_line(str(error), 200)
            raise ConfigError(f"{file}: cannot be read as a table: {reason}. Copy or make it again.") from None
    return _pyarrow().Table.from_batches([table[group]])
