"""Standard output and standard error that a command may outlive, as where ``| head -1`` has read its line."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class _Lasting:
    """A stream like ``stream``; once writing fails, what is written is dropped, and ``explain`` is called with why."""

    def __init__(self, stream: TextIO, explain: Callable[[Exception], None]) -> None:
        self._stream, self._explain, self._lost = stream, explain, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, method: Callable[..., Any], *arguments: Any) -> None:
        if self._lost:
            return
        try:
            method(*arguments)
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self._lost = True
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())  # which takes what the stream still holds
            self._explain(error)


@contextlib.contextmanager
def lasting_errors() -> Iterator[None]:
    """Let the block outlive the reader of standard error."""
    with contextlib.redirect_stderr(_Lasting(sys.stderr, lambda _: None)):  # type: ignore[type-var]
        yield


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let the block outlive the reader of standard output; one line on standard error says so."""

    def explain(error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        sys.stderr.write(f"grpaint: standard output: {reason}; the command goes on, and what it prints is lost.\n")

    with contextlib.redirect_stdout(_Lasting(sys.stdout, explain)):  # type: ignore[type-var]
        yield


class _Printable(logging.Formatter):
    """Formats a warning as one printable line, whatever it quotes."""

    def format(self, record: logging.LogRecord) -> str:
        from grpaint.core.text import printable  # which imports PyTorch

        return printable(record.getMessage())


@contextlib.contextmanager
def printable_warnings() -> Iterator[None]:
    """Within the block, grpaint's own warnings go to standard error, each as one printable line."""
    handler, logger = logging.StreamHandler(), logging.getLogger("grpaint")
    handler.setFormatter(_Printable())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
