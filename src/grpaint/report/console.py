"""The one way to a terminal: what is printed stays plain text, whoever wrote it.

Captions, file names and servers' answers may hold escape sequences, which would move the cursor or set the window's
title, and square brackets, which rich would read as its markup.
"""

from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from grpaint.core.text import printable, printable_lines


def echo(line: str, *, err: bool = False) -> None:
    """Print one line on standard output, or on standard error with ``err``; characters that do not print as escapes."""
    typer.echo(printable(line), err=err)


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output, each as by :func:`echo`."""
    typer.echo("\n".join(map(printable, lines)))


class Terminal(Console):
    """A console on which every text is printed as it is: without markup, emoji codes or escape sequences of its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make a text of rich from a plain one; characters that do not print become escapes."""
        return super().render_str(printable_lines(text), **settings)

    def on_broken_pipe(self) -> None:
        """Let the error of writing pass, which rich would turn into an end of the process by SystemExit."""
        raise  # noqa: PLE0704 - reason: it is called where the error is handled
