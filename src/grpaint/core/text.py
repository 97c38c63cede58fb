"""Foreign text, such as file names, captions and servers' answers, made safe to print."""

import unicodedata

_JOINERS = "\u200c\u200d"  # format characters, but Persian, the scripts of India and emoji are misspelt without them
_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format, surrogate, private, unassigned, separators


def printable(text: str, most: int | None = None) -> str:
    r"""Return ``text`` as one line of printable characters.

    Whatever could move the cursor, change a terminal's colours or title, turn the direction of writing, end the line or
    not be encoded as UTF-8 becomes a visible escape such as ``\x1b``, ``\n``, ``\u202e`` or ``\udcff``. A line longer
    than ``most`` characters is cut and marked with `` ..``.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible, text))
    return text if most is None or len(text) <= most else text[:most] + " .."


def one_line(text: str, most: int) -> str:
    """Return foreign text, which may have many lines, as one printable line of at most ``most`` characters."""
    return printable(" ".join(text[: 4 * most].split()), most)


def printable_lines(text: str) -> str:
    """Return ``text`` with each of its lines made :func:`printable`; only line feeds end a line."""
    return "\n".join(map(printable, text.split("\n")))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def without_surrogates(text: str) -> str:
    """Return ``text`` with each lone surrogate, which no UTF-8 file can hold, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
