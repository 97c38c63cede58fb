"""Sources of captioned images: what folders with sidecars, WebDataset shards and tables have in common.

Each source lists its entries once and reads any of them by position. So every order is a permutation of numbers, and a
resumed run needs no position in a stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from grpaint.core.errors import ConfigError
from grpaint.images.pictures import BadImage
from grpaint.storage.reading import read_regular

MOST_IMAGE = 1 << 30  # bytes


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

    def left_out(self) -> Mapping[str, str]:
        """Return the names of what looks like an image and is no entry, with the reason (see ``naming.py``)."""

    def read(self, entry: ImageEntry) -> bytes:
        """Read the bytes of an image file.

        Raises:
            BadImage: if they cannot be read.
        """


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
