"""Votes as a preference data set: a parquet file with a row for each pair of images of which a voter preferred one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.storage.atomic import write_atomic
from grpaint.storage.ballots import Question, Ranking
from grpaint.storage.votes import VoteFile

IMAGES = ("image_0", "image_1")


def export_preferences(votes: VoteFile, file: Path) -> tuple[int, int]:
    """Write the file, and return the number of its groups and of its rows.

    Columns: ``caption``; ``image_0`` and ``image_1``, PNG files as the images of ``datasets`` are stored; ``label_0``,
    1 if the first was preferred and 0 if the second; ``voter``; ``group``, the key of the images' group.

    Raises:
        ConfigError: there is no preference yet.
        MissingExtra: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("--export", "data") from None
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    types = {"caption": pyarrow.string(), **dict.fromkeys(IMAGES, image), "label_0": pyarrow.float32()}
    schema = pyarrow.schema(types | {"voter": pyarrow.string(), "group": pyarrow.string()})
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    counts = [0, 0]

    def write(stream: BinaryIO) -> None:
        with pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for question, rankings in votes.answered():
                if rows := list(_rows(question, rankings)):
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    counts[:] = counts[0] + 1, counts[1] + len(rows)
        if not counts[1]:
            raise ConfigError(f"{votes.file}: no voter has preferred an image yet.")

    write_atomic(file, write)
    return counts[0], counts[1]


def _features() -> dict[str, Any]:
    """Return the columns as ``datasets`` describes them, by which it decodes the images."""
    text = {"dtype": "string", "_type": "Value"}
    label = {"dtype": "float32", "_type": "Value"}
    return {
        "caption": text,
        **{name: {"_type": "Image"} for name in IMAGES},
        "label_0": label,
        "voter": text,
        "group": text,
    }


def _rows(question: Question, rankings: Sequence[Ranking]) -> Iterator[dict[str, Any]]:
    for ranking in rankings:
        for better, worse in ranking.preferences(len(question.images)):
            # which comes first must not tell which is better
            swap = hashlib.sha256(f"{question.key} {ranking.voter} {better} {worse}".encode()).digest()[0] % 2
            pair = [better, worse][:: -1 if swap else 1]
            images = {
                name: {"bytes": question.images[place], "path": None} for name, place in zip(IMAGES, pair, strict=True)
            }
            yield {
                "caption": question.caption,
                **images,
                "label_0": 0.0 if swap else 1.0,
                "voter": ranking.voter,
                "group": question.key,
            }
