"""What is printed is plain text, whoever wrote it."""

import io

from rich.table import Table

from grpaint.report.console import Terminal, echo, echo_lines

TITLE = "\x1b]0;mine\x07"


def test_a_terminal_prints_brackets_and_escapes_as_text():
    out = io.StringIO()
    terminal = Terminal(file=out, width=200, force_terminal=True, color_system=None)
    terminal.print(f"x[/b] [bold]y[/bold] :smile: {TITLE}")
    table = Table(title=f"[/x]{TITLE}")
    table.add_column(f"[red]{TITLE}")
    table.add_row(f"[/y]{TITLE}", style="bold")
    terminal.print(table)
    text = out.getvalue()
    for printed in ("x[/b] [bold]y[/bold] :smile: \\x1b]0;mine\\x07", "[/x]\\x1b", "[red]\\x1b", "[/y]\\x1b"):
        assert printed in text
    assert TITLE not in text


def test_echoed_lines_hold_no_escape_and_end_where_they_should(capsys):
    echo(f"a{TITLE}\nb")
    echo("c\udcff", err=True)
    echo_lines(["d", "e\nf"])
    out, err = capsys.readouterr()
    assert out == "a\\x1b]0;mine\\x07\\nb\nd\ne\\nf\n"
    assert err == "c\\udcff\n"
