"""The one reader of text, JSON, CSV and TOML, whoever wrote the file: what is wrong with it is told in one line.

Every function raises :class:`~grpaint.core.errors.ConfigError` with the file, and the line where there are lines.
Nesting of more than ``MOST_DEPTH`` levels, whole numbers that fp64 cannot hold, bytes that are no UTF-8 and files that
are no regular ones (pipes, devices) are errors like any other. A lone surrogate, which JSON may spell, is read as
U+FFFD.
"""

import contextlib
import csv
import io
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from grpaint.core.errors import ConfigError
from grpaint.core.text import one_line, printable, without_surrogates

MOST_TEXT = 1 << 30  # bytes of a text file, which is read into memory whole
MOST_DEPTH = 100  # levels of tables and lists in each other; Python's own limit depends on where it is called
MOST_DIGITS = 308  # of a whole number: longer ones exceed fp64


def read_regular(file: Path, most: int | None = None) -> bytes:
    """Read a regular file whole; ``most`` limits its bytes. It never waits, as reading from a pipe would.

    Raises:
        ConfigError: it is missing, not a regular file, larger than ``most``, or cannot be read.
    """
    with _opened_regular(file) as stream:
        raw = stream.read() if most is None else stream.read(most + 1)
    if most is not None and len(raw) > most:
        raise ConfigError(f"{file}: more than {most} bytes, the most that are read of such a file.")
    return raw


@contextlib.contextmanager
def _opened_regular(file: Path) -> Iterator[BinaryIO]:
    """Open a regular file without waiting; what cannot be read within the block is an error too.

    Raises:
        ConfigError: it is missing, not a regular file, or cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{file}: no regular file (a pipe, a device or a folder); name a file.")
            yield stream
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    except ValueError:  # a NUL in the name
        raise ConfigError(f"{printable(str(file))}: no name that a file can have.") from None


def read_end_lines(file: Path) -> tuple[bytes, bytes]:
    """Read the first and the last whole line of a regular file, and not what lies between; empty where there is none.

    A last line without a line feed is not whole.

    Raises:
        ConfigError: it is missing, not a regular file, or cannot be read.
    """
    with _opened_regular(file) as stream:
        first = stream.readline()
        size, block, lines = stream.seek(0, os.SEEK_END), 1 << 16, b""
        while b"\n" not in lines:
            stream.seek(max(0, size - block))
            tail = stream.read(min(size, block))
            lines = tail[: tail.rfind(b"\n") + 1].rstrip(b"\n")
            if len(tail) >= size:
                break
            block *= 4
    return first.rstrip(b"\n") if first.endswith(b"\n") else b"", lines.rpartition(b"\n")[2]


def read_text(file: Path) -> str:
    """Read a UTF-8 file as :func:`decode_text` does.

    Raises:
        ConfigError: it cannot be read or is not UTF-8; then with the line.
    """
    return decode_text(read_regular(file, MOST_TEXT), str(file))


def decode_text(raw: bytes, location: str) -> str:
    """Decode UTF-8; ``location`` is the file that errors name.

    Byte order marks are no part of the text, also between files that were joined. Zero bytes are those of UTF-16.

    Raises:
        ConfigError: it is not UTF-8; with the line. Or it is a pointer of Git LFS.
    """
    check_pulled(raw, location)
    begin = raw.find(b"\0")
    try:
        text = raw.decode().replace("\ufeff", "")
    except UnicodeDecodeError as error:
        begin = error.start
    if begin >= 0:
        reason = "not UTF-8, but UTF-16" if b"\0" in raw else "not UTF-8"
        raise ConfigError(f"{location}:{raw[:begin].count(10) + 1}: {reason}; save it as UTF-8.")
    return text


def check_pulled(head: bytes, location: str) -> None:
    """Raise ConfigError if a file that begins with ``head`` is a pointer of Git LFS."""
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{location}: a pointer of Git LFS, not the file; run git lfs pull.")


def text_lines(text: str) -> list[str]:
    """Cut a text at the line ends of Unix, Windows and old Macs, and at no other characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def parse_json(text: str, location: str, line: int | None = None) -> Any:
    """Parse JSON; ``location`` (the file) and ``line`` are named in errors.

    Raises:
        ConfigError: it is not JSON, is nested too deeply, or holds a number that is too long.
    """
    at = f"{location}:{line or 1}"
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ConfigError(f"{at}: JSON of more than {MOST_DEPTH} levels.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{location}:{line or error.lineno}: not JSON ({error.msg}).") from None
    except ValueError as error:
        raise ConfigError(f"{at}: {error}.") from None
    if text.count("[") + text.count("{") > MOST_DEPTH and _too_deep(value):
        raise ConfigError(f"{at}: JSON of more than {MOST_DEPTH} levels.")
    return _clean(value) if "\\ud" in text.lower() else value


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _levels(value: Any) -> Iterator[list[Any]]:
    """Yield the values at each level of lists and tables in each other: first ``value`` itself, then its items, .."""
    level = [value]
    while level:
        yield level
        containers = [item for item in level if isinstance(item, list | dict)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]


def _too_deep(value: Any) -> bool:
    return sum(1 for _ in _levels(value)) > MOST_DEPTH


def _clean(value: Any) -> Any:
    """Replace the lone surrogates in every text of a JSON value."""
    match value:
        case str():
            return without_surrogates(value)
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {without_surrogates(key): _clean(item) for key, item in value.items()}
    return value


def parse_object(text: str, location: str, line: int | None = None) -> dict[str, Any]:
    """Parse a JSON object, as in :func:`parse_json`.

    Raises:
        ConfigError: it is no JSON object.
    """
    value = parse_json(text, location, line)
    if not isinstance(value, dict):
        raise ConfigError(f"{location}:{line or 1}: must be a JSON object, {{..}}, not {type(value).__name__}.")
    return value


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: it cannot be read, or is not JSON.
    """
    return parse_json(read_text(file), str(file))


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    return parse_object(read_text(file), str(file))


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a .jsonl file with their line numbers; blank lines are skipped.

    JSON strings may contain U+2028 and other Unicode line separators, which end no line.

    Raises:
        ConfigError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(text_lines(read_text(file)), 1):
        if line.strip():
            yield number, parse_object(line, str(file), number)


def csv_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a .csv file by the column names of its first line, each with the number of its last line.

    Raises:
        ConfigError: the file cannot be read, is not CSV, or a row has more or fewer columns.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if len({*names}) < len(names):
            raise ConfigError(f"{file}:1: two columns of one name; rename one: {one_line(', '.join(names), 200)}.")
        for row in reader:
            if None in row or None in row.values():
                column_count = len(reader.fieldnames or ())
                raise ConfigError(
                    f"{file}:{reader.line_num}: not the {column_count} columns that the first line names."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{file}:{reader.reader.line_num}: not CSV: {error}.") from None


def parse_toml(text: str, location: str) -> dict[str, Any]:
    """Parse TOML; ``location`` is named in errors.

    Raises:
        ConfigError: it is not TOML; with the line and the column where TOML's parser gives them.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{location}: TOML of more than {MOST_DEPTH} levels.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{location}: not TOML: {printable(str(error))}.") from error
    except ValueError:  # Python's own limit
        raise ConfigError(f"{location}: a number of thousands of digits.") from None
    if _too_deep(table):
        raise ConfigError(f"{location}: TOML of more than {MOST_DEPTH} levels.")
    for number in (item for level in _levels(table) for item in level if isinstance(item, int)):
        if abs(number) >= 10**MOST_DIGITS:  # hexadecimal ones pass Python's limit
            raise ConfigError(f"{location}: a number of more than {MOST_DIGITS} digits.")
    return table


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file as plain values.

    Raises:
        ConfigError: it cannot be read or is not TOML; the message has the line and the column.
    """
    return parse_toml(read_text(file), str(file))
