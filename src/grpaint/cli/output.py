"""Standard output and standard error that a command may outlive, as where ``| head -1`` has read its line."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Lasting:
    """A stream like ``stream``; once writing fails, what is written is dropped, and ``explain`` is called with why."""

    def __init__(self, stream: TextIO, explain: Any) -> None:
        self._stream, self._explain = stream, explain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Connect the stream to the null device, which also takes what the stream still holds."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        self._explain(error)


@contextlib.contextmanager
def lasting_errors() -> Iterator[None]:
    """Let the block outlive the reader of standard error."""
    with contextlib.redirect_stderr(_Lasting(sys.stderr, lambda _: None)):  # type: ignore[type-var]
        yield


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let the block outlive the reader of standard output; one line on standard error says so."""

    def explain(error: OSError) -> None:
        line = f"grpaint: standard output: {error.strerror}; the command goes on, and what it prints is lost.\n"
        sys.stderr.write(line)

    with contextlib.redirect_stdout(_Lasting(sys.stdout, explain)):  # type: ignore[type-var]
        yield
