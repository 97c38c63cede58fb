"""WebDataset tar shards as a source of captioned images."""

import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Self

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable
from grpaint.images import cache
from grpaint.images.naming import HIDDEN, LINK_TO_NOTHING, is_hidden, kind_of, reason_left_out
from grpaint.images.pictures import BadImage
from grpaint.images.sidecars import JSON_SUFFIXES, TEXT_SUFFIXES, Fields, alike, merge, sidecar_names
from grpaint.images.sources import ImageEntry
from grpaint.images.walk import Walk, relative_name
from grpaint.storage.reading import check_pulled, decode_text, parse_object

MOST_SIDECAR = 1 << 26  # bytes
IN_SHARD, REPLACED = "a shard or table within a shard; unpack it", "replaced by a later member of its name"
FURTHER = "a further image of a sample, without a caption of its own"


@dataclass(frozen=True)
class ImageShards:
    """WebDataset tar shards: an image with the .json and .txt of its name, or else those of its sample.

    A sample is what has the same name up to the first dot. The index (names, offsets, sizes, fields) is built in one
    pass over each shard and cached until the shard changes.
    """

    walk: Walk
    caption: str

    def entries(self) -> list[ImageEntry]:
        return [
            ImageEntry(f"{relative_name(file, self.walk.root)}:{printable(name)}", file, (offset, size), fields)
            for file, index in self._indices.items()
            for name, offset, size, fields in index["images"]
        ]

    def left_out(self) -> Mapping[str, str]:
        return self.walk.left_out | {
            f"{relative_name(file, self.walk.root)}:{printable(name)}": reason
            for file, index in self._indices.items()
            for name, reason in index["left_out"].items()
        }

    @cached_property
    def _indices(self) -> dict[Path, dict[str, Any]]:
        return {file: self._index(file) for file in self.walk.of("shard")}

    def _index(self, file: Path) -> dict[str, Any]:
        subject, stamp = f"index of {file.resolve()}, {self.caption}", cache.stamp(file)
        index = cache.read(subject)
        if index.get("stamp") != stamp:
            index = {"stamp": stamp} | _read_index(file, self.caption)
            cache.write(subject, index)
        return index

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


class _Member(NamedTuple):
    """A file in a shard: its name, and the offset and size of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return str(PurePosixPath(self.name).with_suffix(""))

    @property
    def sample(self) -> str:
        """The name up to the first dot of its last part."""
        folder, _, base = str(PurePosixPath(self.name)).rpartition("/")
        return posixpath.join(folder, base.partition(".")[0])


def _read_index(file: Path, caption: str) -> dict[str, Any]:
    """Return the images of a shard with their fields, and the members that are left out with the reason."""
    left_out: dict[str, str] = {}
    check_pulled(_head(file), str(file))
    try:
        with tarfile.open(file, "r:", tarinfo=_Header) as shard:
            members = _visible_members(shard, left_out)
        with file.open("rb") as raw:
            images = [*_images(file, members, raw, caption, left_out)]
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        reason = printable(str(error))
        raise ConfigError(f"{file}: not a whole tar file ({reason}); compressed ones must be unpacked first.") from None
    return {"images": images, "left_out": left_out}


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(64)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None


def _visible_members(shard: tarfile.TarFile, left_out: dict[str, str]) -> list[_Member]:
    """List the files of a shard that are not hidden, links as what they lead to."""
    headers = {posixpath.normpath(member.name): member for member in shard if member.isfile()}
    members: dict[str, _Member] = {}  # by their names without ./
    for member in shard.getmembers():
        if not (member.isfile() or member.issym() or member.islnk()):
            continue
        is_image = kind_of(posixpath.basename(member.name)) not in ("other", "unknown", "metadata", "splits")
        if any(is_hidden(part) for part in PurePosixPath(member.name).parts):
            left_out.update({member.name: HIDDEN} if is_image else {})
            continue
        link = posixpath.join(posixpath.dirname(member.name), member.linkname) if member.issym() else member.linkname
        target = member if member.isfile() else headers.get(posixpath.normpath(link))
        if target is None:
            left_out.update({member.name: LINK_TO_NOTHING} if is_image else {})
            continue
        earlier = members.pop(posixpath.normpath(member.name), None)
        if earlier and is_image:
            left_out[earlier.name] = REPLACED
        members[posixpath.normpath(member.name)] = _Member(member.name, target.offset_data, target.size)
    return [*members.values()]


def _images(
    file: Path, members: list[_Member], raw: BinaryIO, caption: str, left_out: dict[str, str]
) -> Iterator[tuple[str, int, int, Fields]]:
    """Yield the name, offset, size and fields of each image among the members; ``raw`` is the open shard."""
    stems: dict[str, set[str]] = {}  # of images, by folder
    for member in members:
        if kind_of(member.name) == "image":
            stems.setdefault(posixpath.dirname(member.name), set()).add(PurePosixPath(member.name).stem)
    samples: dict[str, list[_Member]] = {}
    for member in members:
        samples.setdefault(alike(member.sample), []).append(member)
    for sample, its_members in samples.items():
        sidecars_of = _Sidecars(its_members)
        has_plain = any(alike(member.stem) == sample and kind_of(member.name) == "image" for member in its_members)
        for member in its_members:
            base = posixpath.basename(member.name)
            kind = kind_of(base)
            raw.seek(member.offset)
            head = raw.read(min(32, member.size)) if kind == "unknown" else b""
            reason = reason_left_out(base, stems.get(posixpath.dirname(member.name), set()), head)
            if reason or kind in ("shard", "parquet", "arrow", "metadata"):
                left_out[member.name] = reason or IN_SHARD
            if reason or kind != "image":
                continue
            sidecars = sidecars_of(member)
            if not sidecars and has_plain and alike(member.stem) != sample:
                left_out[member.name] = FURTHER
                continue
            sidecars = sidecars or sidecars_of(member._replace(name=f"{sample}.png"))
            sources = [(posixpath.basename(s.name), _fields(file, s, raw, caption)) for s in sidecars]
            yield *member, merge(sources, caption, f"{file}: {member.name}")


class _Sidecars:
    """The sidecars of the images of a sample: those of an image's name, or of one that differs in case alone."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._by_name: dict[str, list[_Member]] = {}
        for member in members:
            self._by_name.setdefault(alike(str(PurePosixPath(member.name))), []).append(member)
        images = [member for member in members if kind_of(posixpath.basename(member.name)) == "image"]
        self._stems = {stem for member in images for stem in (member.stem, str(PurePosixPath(member.name)))}

    def __call__(self, image: _Member) -> list[_Member]:
        own = (image.stem, str(PurePosixPath(image.name)))
        stem, name = map(alike, own)
        names = sidecar_names(stem, name, JSON_SUFFIXES) + sidecar_names(stem, name, TEXT_SUFFIXES)
        candidates = [sidecar for name in names for sidecar in self._by_name.get(name, [])]
        return [sidecar for sidecar in candidates if sidecar.stem in own or sidecar.stem not in self._stems]


def _fields(file: Path, sidecar: _Member, raw: BinaryIO, caption: str) -> Fields:
    """Read a sidecar: a JSON object, or a text that is the caption."""
    location = f"{file}: {sidecar.name}"
    if sidecar.size > MOST_SIDECAR:
        raise ConfigError(f"{location}: {sidecar.size} bytes, and a caption has at most {MOST_SIDECAR}.")
    raw.seek(sidecar.offset)
    text = decode_text(raw.read(sidecar.size), location)
    return parse_object(text, location) if sidecar.name.lower().endswith(JSON_SUFFIXES) else {caption: text.strip()}
