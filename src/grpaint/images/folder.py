"""A folder of image files with captions in sidecars or metadata files as a source of captioned images."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.core.text import one_line
from grpaint.images.naming import kind_of
from grpaint.images.pictures import SUFFIXES
from grpaint.images.sidecars import JSON_SUFFIXES, TEXT_SUFFIXES, Fields, alike, merge, sidecar_names
from grpaint.images.sources import ImageEntry, read_image_file
from grpaint.images.tables import table_rows
from grpaint.images.walk import Walk, relative_name
from grpaint.storage.confined import as_spelt, inside
from grpaint.storage.reading import csv_rows, json_lines, read_object, read_text

Sources = list[tuple[str, Fields]]  # what is written about an image, each with the name of the place


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a folder; captions in a metadata file (by ``file_name``), NAME.json or NAME.txt beside them.

    ``caption``: the column in which the text of NAME.txt is stored.
    """

    walk: Walk
    caption: str

    def entries(self) -> list[ImageEntry]:
        by_file: dict[Path, Sources] = {}
        for table in self.walk.of("metadata"):
            for file, source in _rows(table):
                by_file.setdefault(file, []).append(source)
        sidecars: dict[Path, list[Path]] = {}  # A.PNG may have an A.TXT
        for file in self.walk.files.get("other", []):
            sidecars.setdefault(file.with_name(alike(file.name)), []).append(file)
        images = self.walk.of("image")
        stems = {stem for file in images for stem in (file.with_suffix(""), file)}
        return [
            ImageEntry(
                relative_name(file, self.walk.root),
                file,
                (0, 0),
                merge(by_file.get(file, []) + self._beside(file, sidecars, stems), self.caption, str(file)),
            )
            for file in images
        ]

    def left_out(self) -> Mapping[str, str]:
        return self.walk.left_out

    def _beside(self, file: Path, sidecars: Mapping[Path, list[Path]], stems: Collection[Path]) -> Sources:
        """Read the sidecars of an image: those of its name, or of one :func:`alike` that is no other's.

        ``sidecars``: all, by the spelling in common. ``stems``: the names of all images, with and without suffix.
        """
        stem, name = alike(file.stem), alike(file.name)
        names = sidecar_names(stem, name, JSON_SUFFIXES) + sidecar_names(stem, name, TEXT_SUFFIXES)
        candidates = [s for name in names for s in sidecars.get(file.with_name(name), []) if s.is_file()]
        own = (file.with_suffix(""), file)
        its_own = [s for s in candidates if s.with_suffix("") in own or s.with_suffix("") not in stems]
        return [
            (s.name, read_object(s) if s.suffix.lower() in JSON_SUFFIXES else {self.caption: read_text(s).strip()})
            for s in its_own
        ]

    def read(self, entry: ImageEntry) -> bytes:
        return read_image_file(entry.file)


def _rows(table: Path) -> Iterator[tuple[Path, tuple[str, Fields]]]:
    """Yield the image file of each line of a metadata file, with the line's name and its fields."""
    read = {".jsonl": json_lines, ".csv": csv_rows, ".parquet": table_rows}[table.suffix.lower()]
    earlier_names: set[str] = set()
    for number, fields in read(table):
        location = f"{table}:{number}"
        name = fields.pop("file_name", None)
        if not isinstance(name, str) or not name:
            columns = one_line(", ".join(fields) or "none", 200)
            raise ConfigError(f"{location}: no file_name, which names the image of the line. Other columns: {columns}.")
        name = as_spelt(table.parent, name)
        if name in earlier_names:
            raise ConfigError(f"{location}: a second line for {name}.")
        if not inside(table.parent, name, location, links=True).is_file():
            raise ConfigError(f"{location}: there is no file {name} beside it.")
        if kind_of(Path(name).name) not in ("image", "left out", "unknown"):
            raise ConfigError(f"{location}: {name}: images end in {', '.join(SUFFIXES)}.")
        earlier_names.add(name)
        yield table.parent / name, (f"{table.name}:{number}", fields)
