"""Numbers, texts and switches of a recipe: their types, and what fp32, JSON and a file name can hold."""

import math
import reprlib
from typing import Any

from grpaint.core.errors import ConfigError

LEAST, MOST = 1e-30, 1e30  # sizes of numbers: fp32 holds 1.2e-38 .. 3.4e38, and a product needs some room
MOST_NAME = 200  # characters
WHOLE = 2**53  # whole numbers up to this are exact in JSON and as a float
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class _Short(reprlib.Repr):
    """A representation of any value, of bounded length and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) <= WHOLE else f"(a whole number of {x.bit_length()} bits)"


_short = _Short()


def short(value: Any) -> str:
    """Return a value as it appears in an error: of bounded length, however long or deeply nested it is."""
    return _short.repr(value)


def scalar(hint: type, value: Any, key: str, *, infinite: bool = False) -> Any:
    """Return a number, text or switch of type ``hint``; a whole number also counts as a float.

    Raises:
        ConfigError: it is of another type, or it is a number or text that a run cannot hold.
    """
    if hint is float and type(value) is int:
        if abs(value) > MOST:
            raise _beyond_fp32(value, key)
        value = float(value)
    if type(value) is not hint:
        actual = "" if isinstance(value, float) else f", not {_NAMES.get(type(value), 'that')}"
        raise ConfigError(f"{key} = {short(value)}: must be {_NAMES.get(hint, hint)}{actual}.")
    if isinstance(value, float):
        _check_float(value, key, infinite=infinite)
    elif isinstance(value, int) and abs(value) > WHOLE:
        raise ConfigError(f"{key} = {short(value)}: must lie within 2^53 of 0, so that every file holds it exactly.")
    elif isinstance(value, str):
        check_text(value, key)
    return value


def _check_float(value: float, key: str, *, infinite: bool) -> None:
    if math.isnan(value):
        raise ConfigError(f"{key} = nan: must be a number.")
    if math.isinf(value):
        if not infinite:
            raise ConfigError(f"{key} = {value}: must be finite.")
    elif value and not LEAST <= abs(value) <= MOST:
        raise _beyond_fp32(value, key)


def _beyond_fp32(value: float, key: str) -> ConfigError:
    return ConfigError(
        f"{key} = {short(value)}: computations in fp32 cannot hold it; write 0, or a size from {LEAST:g} to {MOST:g}."
    )


def check_name(name: str, key: str) -> None:
    """Refuse the name of a table that a line of output or a file cannot hold.

    Raises:
        ConfigError: it is too long, or no text.
    """
    check_text(name, f"a name in {key}")
    if not 0 < len(name) <= MOST_NAME:
        raise ConfigError(f"{key}.{name[:40]}: a name of {len(name)} characters; it must have 1 to {MOST_NAME}.")


def check_text(text: str, key: str) -> None:
    """Refuse a text that no file or file name can hold.

    Raises:
        ConfigError: it has a NUL, or bytes that are no UTF-8.
    """
    bad = next((char for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None)
    if bad is not None:
        raise ConfigError(f"{key} = {short(text)}: has {bad!a}, which is no character of a text; leave it out.")
