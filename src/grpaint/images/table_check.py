"""Read parquet and arrow files whole, in a process of their own, which a damaged one may end by a signal.

``tables.py`` runs this file by path with an interpreter of its own; it needs nothing but pyarrow. Its arguments are the
files; it prints a line of JSON for each: the file's position, and the reason why it cannot be used, or "".
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ROWS = 256  # read at once


def _batches(file: str) -> Iterator[Any]:
    if file.lower().endswith(".parquet"):
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS)
        return
    with pyarrow.memory_map(file) as buffer:
        is_file = buffer.read(6) == b"ARROW1"
        buffer.seek(0)
        if is_file:
            opened = pyarrow.ipc.open_file(buffer)
            yield from map(opened.get_batch, range(opened.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(buffer)


def problem(file: str) -> str:
    """Return the reason why a file cannot be used; "" if every value in it can be read."""
    try:
        size, rows = Path(file).stat().st_size, 0
        with Path(file).open("rb") as opened:
            if opened.read(64).startswith(b"version https://git-lfs"):
                return "a pointer of Git LFS, not the file; run git lfs pull"
        for batch in _batches(file):
            batch.validate(full=True)
            rows += batch.num_rows
            if rows > size:
                return f"more than {size} rows in {size} bytes"
            for begin in range(0, batch.num_rows, ROWS):
                batch.slice(begin, ROWS).to_pylist()
    except Exception as error:  # noqa: BLE001 - reason: a damaged file may raise anything
        return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return ""


if __name__ == "__main__":
    for position, name in enumerate(sys.argv[1:]):
        print(json.dumps([position, problem(name)]), flush=True)  # noqa: T201 - reason: its answer
