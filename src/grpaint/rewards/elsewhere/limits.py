"""What a request to a reward server may hold, and its JSON, which is counted before it is read into memory."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from grpaint.core.text import without_surrogates
from grpaint.storage.reading import MOST_DIGITS

MOST_HEADER = 16 << 20  # bytes of the header of a safetensors body, which holds the prompts
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """Limits of a server and of its requests.

    ``bytes`` of a request; ``seconds`` for it to arrive, and again to be scored. ``batch``: images of waiting requests
    that are scored together (0: each alone). ``connections``: at one time. A request may hold ``pixels`` in all its
    pictures together, ``images``, ``characters`` in a prompt's text and in its metadata as JSON, and JSON of ``depth``
    levels and ``values`` items. All requests together may hold ``memory`` bytes, as sent and as decoded.
    """

    bytes: int = 256 << 20
    seconds: float = 300.0
    batch: int = 0
    connections: int = 32
    pixels: int = 1 << 26
    images: int = 4096
    characters: int = 1 << 16
    depth: int = 32
    values: int = 1 << 18
    memory: int = 4 << 30


class Malformed(ValueError):
    """A request that does not follow the protocol; the message says what is wrong."""


class TooLarge(Malformed):
    """A request that exceeds a limit."""


def parse_json(text: bytes, limits: Limits) -> Any:
    """Parse JSON within ``limits``, in which no key of an object repeats and every number is finite.

    Lone surrogates are read as U+FFFD.

    Raises:
        Malformed: it is something else.
    """
    brackets = re.sub(rb"[^][{},]+", b"", _STRING.sub(b"", text))
    most, depth = 2 * limits.values, 0  # two brackets, or a comma, for a value
    for bracket in brackets[:most].replace(b",", b""):
        depth += 1 if bracket in b"[{" else -1
        if depth > limits.depth:
            raise Malformed(f"JSON of more than {limits.depth} levels")
    if len(brackets) > most:
        raise TooLarge(f"more than {limits.values} values in the JSON")
    try:
        value = json.loads(
            text.decode("utf-8-sig"),
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_without_repeats,
        )
        if b"\\u" in text:
            value = json.loads(without_surrogates(json.dumps(value, ensure_ascii=False)))
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({error})") from error
    return value


def _refuse(constant: str) -> None:
    raise Malformed(f"{constant} in the JSON, which is no finite number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Malformed(f"{digits:.40} in the JSON, which is no finite number")
    return number


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Malformed(f"a number of {len(digits)} digits in the JSON")
    return int(digits)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise Malformed(f"the key {key!r:.60} twice in a JSON object")
        table[key] = value
    return table
