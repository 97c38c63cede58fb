"""Ctrl-C, SIGTERM and SIGHUP: a run finishes its iteration, saves, and stops."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

NOTICE = b"grpaint: stopping after what is under way, an iteration or an evaluation; again to stop at once.\n"


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Handle a signal: raise a KeyboardInterrupt with its number, which code that raises one itself does not give."""
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Within the block Ctrl-C raises as :func:`interrupt` does, where Python's own handler would raise."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which the main thread alone may replace
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Stopped(Exception):
    """Raised after a checkpoint when a signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Listener:
    """Within its block Ctrl-C, SIGTERM and SIGHUP set ``requested``; a second signal stops the process at once.

    ``requested`` is the number of the signal, 0 before one came. SIGHUP stays ignored under ``nohup``; where the
    terminal is gone with it, what would be printed there is dropped.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in this thread alone
            numbers = [signal.SIGINT, signal.SIGTERM]
            hangup = getattr(signal, "SIGHUP", None)  # not on Windows
            if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
                numbers.append(hangup)
            self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def request(self, number: int, *, notice: bool) -> None:
        """Ask for a stop as the first signal does, from another thread; ``notice``: tell the user so, too."""
        if not self.requested:
            self.requested = number
            if notice:
                _notify()

    def _request(self, number: int, frame: FrameType | None) -> None:
        for descriptor in (1, 2) if number == getattr(signal, "SIGHUP", None) else ():
            _drop_if_hung_up(descriptor)
        if self.requested:
            interrupt(number, frame)
        self.requested = number
        _notify()


def _notify() -> None:
    """Say that the run stops after what is under way; without print, which a handler may interrupt."""
    with contextlib.suppress(OSError):  # nobody may read it any more
        os.write(2, NOTICE)


def _drop_if_hung_up(descriptor: int) -> None:
    """Point a descriptor at the null device if it is of a terminal that is gone: writing there fails."""
    try:
        os.write(descriptor, b"")
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), descriptor)
