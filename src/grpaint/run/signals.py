"""Signals that ask a run to stop."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

SAID = b"grpaint: stopping after what is under way, an iteration or an evaluation; again to stop at once.\n"


class Stopped(Exception):
    """Raised after a checkpoint when a signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Listener:
    """Inside it Ctrl-C and SIGTERM ask to stop after the iteration; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number
        os.write(2, SAID)  # a handler may come in the middle of a print
