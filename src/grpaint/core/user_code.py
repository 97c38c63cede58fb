"""Call a user's own code: whatever it raises becomes an error of ours that names it, ``sys.exit`` included."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpaint.core.errors import GrpaintError, StopRequested
from grpaint.core.importing import ForeignCode
from grpaint.core.text import one_line

MOST_CHARACTERS = 1000  # of a message, which may hold a whole tensor
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def describe(error: BaseException, most: int = MOST_CHARACTERS) -> str:
    """Return ``ValueError: its message`` in one printable line of at most ``most`` characters."""
    try:
        message = str(error).strip()
    except Exception as second:  # noqa: BLE001 - reason: an exception of a user's own may raise anything
        message = f"its message cannot be read ({type(second).__name__})"
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__, most)


def interrupted(error: BaseException) -> bool:
    """Return whether a signal to the process raised ``error``, and not code that raised KeyboardInterrupt itself.

    Our handlers raise KeyboardInterrupt with the signal's number. Python's own gives no number, so that every
    KeyboardInterrupt in the main thread counts while it is in place.
    """
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    return error.args[:1] in [(number,) for number in SIGNALS] or (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


@contextmanager
def user_code(name: str, kind: type[Exception], details: str = "") -> Iterator[None]:
    """Raise ``kind``, with ``name`` before the message and ``details`` after it, in place of what the block raises.

    A signal to stop passes, and so does a refusal to import what foreign settings name.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, ForeignCode | StopRequested) or interrupted(error):
            raise
        reason = f": {error}" if isinstance(error, GrpaintError) else f" raised {describe(error)}"
        raise kind(f"{name}{reason}{details}") from error
