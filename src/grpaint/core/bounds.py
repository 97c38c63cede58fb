"""Bounds that several settings share. A setting beyond them is refused before anything is allocated or counted."""

import re
from typing import Annotated

Limit = Annotated[float, "may be inf"]  # the type of a number that bounds something: inf means no bound
MOST_SIDE = 16_384  # pixels: the longest side of an image; a square of it has 3 GiB in fp32
ROWS = 100_000  # the most prompts, captioned images or rows of one call
IMAGES = 1_000_000  # the most images of an iteration


def check_range(settings: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError if one of the settings ``names`` lies outside ``low`` .. ``high``."""
    for name in names:
        value = getattr(settings, name)
        if value < low:
            raise ValueError(f"{name} must be at least {low:g}, got {value}")
        if value > high:
            raise ValueError(f"{name} must be at most {high:.15g}, got {value}")


def check_positive(**values: float) -> None:
    """Raise ValueError unless all values are positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def whole_number(text: str) -> int | None:
    """Return the whole number from 0 that ``text`` spells in the digits 0 to 9; None if it is none, or a huge one."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None
