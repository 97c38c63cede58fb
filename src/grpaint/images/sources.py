"""Sources of captioned images: folders with sidecars and WebDataset shards; tables are in ``tables.py``.

Each source lists its entries once and reads any of them by position. So every order is a permutation of numbers, and a
resumed run needs no position in a stream.
"""

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable
from grpaint.images import cache
from grpaint.images.pictures import SUFFIXES, BadImage
from grpaint.storage.confined import inside
from grpaint.storage.reading import decode_text, json_lines, parse_object, read_object, read_regular, read_text

Fields = dict[str, Any]
Member = tuple[str, int, int]  # of a tar file: name, offset and size in bytes
MOST_IMAGE, MOST_SIDECAR = 1 << 30, 1 << 26  # bytes


@dataclass(frozen=True)
class ImageEntry:
    """An image in a source: its name, the file that holds it, its position in that file, and its metadata fields.

    ``position``: (offset, size) in bytes in a shard, (row group, row) in a table, (0, 0) for a file of its own.
    """

    name: str
    file: Path
    position: tuple[int, int]
    fields: Mapping[str, Any]


class ImageSource(Protocol):
    """A list of images in a fixed order, each with its metadata, whose bytes can be read in any order."""

    def entries(self) -> list[ImageEntry]:
        """List all images.

        Raises:
            ConfigError: if the metadata of an image cannot be read; with the file, and the line if it has lines.
        """

    def read(self, entry: ImageEntry) -> bytes:
        """Read the bytes of an image file.

        Raises:
            BadImage: if they cannot be read.
        """


def _add_caption(fields: Fields, text: str | None, caption: str, location: str) -> Fields:
    """Add the ``text`` of a .txt sidecar as column ``caption``; raise if the column has another text already."""
    if text is None:
        return fields
    text = text.strip()
    if str(fields.get(caption, text)).strip() != text:
        raise ConfigError(f'{location}: its .txt has another caption than its "{caption}". Remove one of them.')
    return fields | {caption: text}


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a folder; captions in metadata.jsonl (by ``file_name``), NAME.json or NAME.txt beside them.

    ``caption``: the column in which the text of NAME.txt is stored.
    """

    path: Path
    caption: str

    def entries(self) -> list[ImageEntry]:
        by_file = {file: fields for table in sorted(self.path.rglob("metadata.jsonl")) for file, fields in _rows(table)}
        images = [file for file in sorted(self.path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        return [
            ImageEntry(printable(str(file.relative_to(self.path))), file, (0, 0), self._fields(file, by_file))
            for file in images
        ]

    def _fields(self, file: Path, by_file: Mapping[Path, Fields]) -> Fields:
        fields = by_file.get(file, {})
        for sidecar in _sidecars(file, ".json"):
            fields = fields | read_object(sidecar)
        texts = [read_text(sidecar) for sidecar in _sidecars(file, ".txt")]
        return _add_caption(fields, texts[0] if texts else None, self.caption, str(file))

    def read(self, entry: ImageEntry) -> bytes:
        return read_image_file(entry.file)


def read_image_file(file: Path) -> bytes:
    """Read the bytes of an image in a file of its own.

    Raises:
        BadImage: if it cannot be read, is not a regular file, or has more than ``MOST_IMAGE`` bytes.
    """
    try:
        return read_regular(file, MOST_IMAGE)
    except ConfigError as error:
        reason = getattr(error.__cause__, "strerror", None)
        raise BadImage(f"cannot be read: {reason}" if reason else "not a regular file of at most 1 GiB") from None


def _sidecars(file: Path, suffix: str) -> list[Path]:
    """Return the sidecar of an image, or nothing: named a.json or a.png.json, as gallery-dl writes it."""
    candidates = (file.with_suffix(suffix), file.with_name(file.name + suffix))
    return [sidecar for sidecar in candidates if sidecar.is_file()][:1]


def _rows(table: Path) -> Iterator[tuple[Path, Fields]]:
    """Yield the image file and the fields of each line of a metadata.jsonl."""
    earlier_names: set[str] = set()
    for number, fields in json_lines(table):
        name = fields.pop("file_name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{table}:{number}: no file_name, which names the image that the line describes.")
        if name in earlier_names:
            raise ConfigError(f"{table}:{number}: a second line for {name}.")
        if not inside(table.parent, name, f"{table}:{number}", links=True).is_file():
            raise ConfigError(f"{table}:{number}: there is no file {name} beside it.")
        if Path(name).suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{table}:{number}: {name}: images end in {', '.join(SUFFIXES)}.")
        earlier_names.add(name)
        yield table.parent / name, fields


@dataclass(frozen=True)
class ImageShards:
    """WebDataset tar shards: members with the same stem are one sample, an image with its .json and .txt.

    The index (name, offset, size, fields) is built in one pass over each shard and cached until the shard changes.
    """

    files: list[Path]
    caption: str

    def entries(self) -> list[ImageEntry]:
        return [entry for file in self.files for entry in self._shard_entries(file)]

    def _shard_entries(self, file: Path) -> list[ImageEntry]:
        subject, stamp = f"index of {file.resolve()}, {self.caption}", cache.stamp(file)
        index = cache.read(subject)
        if index.get("stamp") != stamp:
            index = {"stamp": stamp, "samples": [*_samples(file, self.caption)]}
            cache.write(subject, index)
        return [
            ImageEntry(printable(f"{file.name}:{name}"), file, (offset, size), fields)
            for name, offset, size, fields in index["samples"]
        ]

    def read(self, entry: ImageEntry) -> bytes:
        offset, size = entry.position
        try:
            with entry.file.open("rb") as shard:
                shard.seek(offset)
                raw = shard.read(size)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from None
        if len(raw) < size:
            raise BadImage("cut short or corrupt")
        return raw


class _Header(tarfile.TarInfo):
    """The header of a tar member, which must be whole and lead forward.

    ``tarfile`` by itself takes a damaged header for the end of the file, and before Python 3.11.14 it reads a member of
    negative size for ever (CVE-2025-8194).
    """

    @classmethod
    def fromtarfile(cls, shard: tarfile.TarFile) -> Self:
        begin = shard.offset
        try:
            member = super().fromtarfile(shard)
            size = os.fstat(shard.fileobj.fileno()).st_size  # type: ignore[union-attr]  # reason: an open file
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]  # reason: not in stubs
            raise
        except Exception as error:  # extended headers raise whatever their parser does
            raise tarfile.ReadError(f"a damaged header at byte {begin}") from error
        leads_out = member.isreg() and member.offset_data + member.size > size
        if shard.offset <= begin or member.size < 0 or leads_out or member.issparse():
            raise tarfile.ReadError(f"the member at byte {begin} leads out of the file, or is sparse")
        return member


def _samples(file: Path, caption: str) -> Iterator[tuple[str, int, int, Fields]]:
    """Yield the name, offset, size and fields of each image of a shard."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(file, "r:", tarinfo=_Header) as shard:
            for member in shard:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if member.isfile():
                    members = samples.setdefault(f"{folder}/{stem}", {})
                    members[f".{suffix.lower()}"] = (member.name, member.offset_data, member.size)
            with file.open("rb") as raw:
                for members in samples.values():
                    yield from _sample(file, members, raw, caption)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        reason = printable(str(error))
        raise ConfigError(f"{file}: not a whole tar file ({reason}); compressed ones must be unpacked first.") from None


def _sample(file: Path, members: dict[str, Member], raw: Any, caption: str) -> Iterator[tuple[str, int, int, Fields]]:
    """Yield the images among a sample's ``members`` (by suffix); ``raw`` is the open shard."""

    def text(suffix: str) -> str | None:
        if suffix not in members:
            return None
        name, offset, size = members[suffix]
        if size > MOST_SIDECAR:
            raise ConfigError(f"{file}: {name}: {size} bytes, and a caption has at most {MOST_SIDECAR}.")
        raw.seek(offset)
        return decode_text(raw.read(size), f"{file}: {name}")

    for name, offset, size in (members[suffix] for suffix in members if suffix in SUFFIXES):
        json_text = text(".json")
        fields = {} if json_text is None else parse_object(json_text, f"{file}: {members['.json'][0]}")
        yield name, offset, size, _add_caption(fields, text(".txt"), caption, f"{file}: {name}")
