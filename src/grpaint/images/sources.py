"""Where captioned images lie: folders with sidecars, WebDataset shards, parquet files, Hugging Face data sets on disk.

Each source lists its entries once and reads any of them by place, so that every order is a permutation of numbers and
a resumed run needs no position in a stream.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from grpaint.core.errors import ConfigError
from grpaint.images import cache
from grpaint.images.pictures import SUFFIXES, BadImage

Fields = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An image by name, the file that holds it, its place in there, and what was said of it."""

    name: str
    holder: Path
    place: tuple[int, int]
    fields: Mapping[str, Any]


class Source(Protocol):
    """Entries in a fixed order, and their bytes."""

    def entries(self) -> list[Entry]:
        """All of them.

        Raises:
            ConfigError: where what is said of an image cannot be read; with the file, and the line where it has one.
        """

    def read(self, entry: Entry) -> bytes:
        """The image file's bytes.

        Raises:
            BadImage: where they cannot be had.
        """


def parse_json(text: str, where: str, line: int | None = None) -> Fields:
    """A JSON object.

    Raises:
        ConfigError: with the file and line where it is something else.
    """
    try:
        said = json.loads(text)
    except ValueError as error:
        at = line or getattr(error, "lineno", 1)
        raise ConfigError(f"{where}:{at}: not JSON ({getattr(error, 'msg', error)}).") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{where}:{line or 1}: a JSON object is wanted, {{..}}, not {type(said).__name__}.")
    return said


def read_text(file: Path) -> str:
    """A UTF-8 file.

    Raises:
        ConfigError: where it cannot be read or is no UTF-8; with the line.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}:{error.object[: error.start].count(10) + 1}: not UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None


def json_lines(file: Path) -> Iterator[tuple[int, Fields]]:
    """The objects of a .jsonl file with their line numbers; blank lines are passed over.

    A line ends with a line feed alone: U+2028 and its like may stand in JSON.
    """
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, str(file), number)


def _merged(fields: Fields, text: str | None, caption: str, where: str) -> Fields:
    """``text`` as the caption, which must not be said twice and differently."""
    if text is None:
        return fields
    text = text.strip()
    if str(fields.get(caption, text)).strip() != text:
        raise ConfigError(f'{where}: its .txt says another caption than its "{caption}". Keep one.')
    return fields | {caption: text}


@dataclass(frozen=True)
class Folder:
    """Image files under a folder; captions in metadata.jsonl (by ``file_name``), NAME.json, NAME.txt beside them."""

    path: Path
    caption: str

    def entries(self) -> list[Entry]:
        listed = {file: fields for table in sorted(self.path.rglob("metadata.jsonl")) for file, fields in _rows(table)}
        images = [file for file in sorted(self.path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        return [
            Entry(str(file.relative_to(self.path)), file, (0, 0), self._fields(file, listed.get(file, {})))
            for file in images
        ]

    def _fields(self, file: Path, fields: Fields) -> Fields:
        for sidecar in _beside(file, ".json"):
            fields = fields | parse_json(read_text(sidecar), str(sidecar))
        texts = [read_text(sidecar) for sidecar in _beside(file, ".txt")]
        return _merged(fields, texts[0] if texts else None, self.caption, str(file))

    def read(self, entry: Entry) -> bytes:
        try:
            return entry.holder.read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None


def _beside(file: Path, suffix: str) -> list[Path]:
    """The sidecar of an image, named a.json or a.png.json; gallery-dl writes the second."""
    return [place for place in (file.with_suffix(suffix), file.with_name(file.name + suffix)) if place.is_file()][:1]


def _rows(table: Path) -> Iterator[tuple[Path, Fields]]:
    seen: set[str] = set()
    for number, fields in json_lines(table):
        name = fields.pop("file_name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{table}:{number}: no file_name, which says whose line this is.")
        if name in seen:
            raise ConfigError(f"{table}:{number}: a second line for {name}.")
        if not (table.parent / name).is_file():
            raise ConfigError(f"{table}:{number}: there is no file {name} beside it.")
        if Path(name).suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{table}:{number}: {name}: images end in {', '.join(SUFFIXES)}.")
        seen.add(name)
        yield table.parent / name, fields


@dataclass(frozen=True)
class Shards:
    """WebDataset tar shards: members of one name are one sample, an image with .json and .txt beside it.

    The index (name, offset, size, captions) is made in one pass over each shard and kept until the shard changes.
    """

    files: list[Path]
    caption: str

    def entries(self) -> list[Entry]:
        return [entry for file in self.files for entry in self._of(file)]

    def _of(self, file: Path) -> list[Entry]:
        subject, stamp = f"index of {file.resolve()}, {self.caption}", cache.stamp(file)
        known = cache.read(subject)
        if known.get("stamp") != stamp:
            known = {"stamp": stamp, "samples": [*_samples(file, self.caption)]}
            cache.write(subject, known)
        return [Entry(f"{file.name}:{n}", file, (at, size), fields) for n, at, size, fields in known["samples"]]

    def read(self, entry: Entry) -> bytes:
        offset, size = entry.place
        with entry.holder.open("rb") as opened:
            opened.seek(offset)
            raw = opened.read(size)
        if len(raw) < size:
            raise BadImage("cut short or corrupt")
        return raw


def _samples(file: Path, caption: str) -> Iterator[tuple[str, int, int, Fields]]:
    """Name, offset, size and fields of each image of a shard."""
    groups: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if member.isfile():
                    said = groups.setdefault(f"{folder}/{stem}", {})
                    said[f".{suffix.lower()}"] = (member.name, member.offset_data, member.size)
            with file.open("rb") as raw:
                for parts in groups.values():
                    yield from _sample(file, parts, raw, caption)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{file}: not a whole tar file ({error}); compressed ones must be unpacked first.") from None


def _sample(
    file: Path, parts: dict[str, tuple[str, int, int]], raw: Any, caption: str
) -> Iterator[tuple[str, int, int, Fields]]:
    def text(suffix: str) -> str | None:
        if suffix not in parts:
            return None
        _, offset, size = parts[suffix]
        raw.seek(offset)
        try:
            return str(raw.read(size).decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: {parts[suffix][0]}: not UTF-8.") from None

    for name, offset, size in (parts[suffix] for suffix in parts if suffix in SUFFIXES):
        said = text(".json")
        fields = {} if said is None else parse_json(said, f"{file}: {parts['.json'][0]}")
        yield name, offset, size, _merged(fields, text(".txt"), caption, f"{file}: {name}")
