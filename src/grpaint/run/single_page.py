"""The page of a run as one file, its pictures inside, made to fit a size."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.images.pictures import BadImage, read_picture
from grpaint.report.pages.run import run_page
from grpaint.report.run_parts.score_map import thinned
from grpaint.report.run_record import RunRecord
from grpaint.run.pictures import LOSSLESS_SIDE
from grpaint.run.record import read_record
from grpaint.storage.atomic import write_atomic
from grpaint.storage.reading import read_regular

MOST_BYTES = 6_000_000
QUALITIES = (75, 60, 45, 30)  # of WebP, tried in this order
PREFIX = "data:image/webp;base64,"
TRIED = 24  # pictures that are encoded to estimate the size of all
LEAST_TIMES = 2  # the base and the last

Encode = Callable[[str, int], bytes]


def write_single(folder: Path, file: Path) -> str:
    """Write the page of a run with its pictures inside; return a line about what was lowered to fit, or an empty one.

    Pictures stay as they are if they fit into ``MOST_BYTES``. Otherwise those that lose by compression anyway are
    encoded anew, and if that is not enough, times between the first and the last are left out.

    Raises:
        ConfigError: ``folder`` is no run folder.
        OSError: the file cannot be written.
    """
    record = read_record(folder)
    room = MOST_BYTES - len(run_page(record, {}).encode())
    record, inline, lowered = _fit(record, room, cache(lambda name, quality: _encoded(folder / name, quality)))
    write_atomic(file, run_page(record, inline))
    return lowered


def _fit(record: RunRecord, room: int, encode: Encode) -> tuple[RunRecord, dict[str, str], str]:
    """Return the record with the times that fit, their pictures as addresses, and what was lowered."""
    times = len(record.drawings)
    levels = [(times, 100), *((times, quality) for quality in QUALITIES)]
    while levels[-1][0] > LEAST_TIMES:
        levels.append((max(LEAST_TIMES, levels[-1][0] // 2), QUALITIES[-1]))
    for shown, quality in levels:
        fewer = replace(record, drawings=[record.drawings[place] for place in thinned(times, shown)])
        files = _files(fewer)
        if _estimate(files, quality, encode) > room:
            continue
        inline = {file: _address(raw) for file in files if (raw := encode(file, quality))}
        if sum(map(len, inline.values())) <= room:
            return fewer, inline, _lowered(quality, shown, times)
    return record, {}, "All pictures are left out: those of two times and of the last rollout do not fit."


def _files(record: RunRecord) -> list[str]:
    shown = [drawing.files for drawing in record.drawings]
    shown += [group.files for group in record.rollout.groups] if record.rollout else []
    return [file for files in shown for file in files if file]


def _estimate(files: Sequence[str], quality: int, encode: Encode) -> float:
    """Return the characters that the pictures take, by a few of them."""
    tried = [files[place] for place in thinned(len(files), TRIED)]
    return len(files) / max(1, len(tried)) * sum(len(_address(encode(file, quality))) for file in tried)


def _encoded(file: Path, quality: int) -> bytes:
    """Return a picture's file, or a smaller one of that quality unless it is 100; empty if it cannot be read."""
    try:
        raw = read_regular(file)
        picture = read_picture(raw)
    except (BadImage, ConfigError):
        return b""
    if quality == 100 or max(picture.size) <= LOSSLESS_SIDE:
        return raw
    smaller = io.BytesIO()
    picture.save(smaller, "WEBP", quality=quality)
    return min(raw, smaller.getvalue(), key=len)


def _address(raw: bytes) -> str:
    return PREFIX + base64.b64encode(raw).decode()


def _lowered(quality: int, shown: int, times: int) -> str:
    parts = [] if quality == 100 else [f"pictures of more than {LOSSLESS_SIDE} pixels have quality {quality}"]
    parts += [] if shown == times else [f"pictures of {shown} of {times} times are shown"]
    return f"To stay within {MOST_BYTES / 1e6:g} MB {' and '.join(parts)}." if parts else ""
