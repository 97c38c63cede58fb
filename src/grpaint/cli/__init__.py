"""The command line: flags and help texts. Nothing heavy is imported until a command runs."""

# ruff: noqa: I001 - commands register when they are imported, and --help lists them in this order

import contextlib
import os
import sys
import traceback

from grpaint.cli.app import app
from grpaint.cli.output import lasting_errors, printable_warnings
from grpaint.run.signals import ctrl_c
from grpaint.cli import runs, recipes, data, models, rewards  # noqa: F401


def main() -> None:
    """Run the command line: an error of ours is one line, a bad setting exits with 2, a stopped run with 130 or 143."""
    if "OMP_WAIT_POLICY" not in os.environ:  # before PyTorch loads: threads that spin for long stall on busy cores
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stand-in of a test may not have an encoding
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # reason: see above
    with lasting_errors(), printable_warnings(), ctrl_c():
        try:
            app(prog_name="grpaint")
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and end.code != 130:  # typer turns Ctrl-C into this
                raise
            sys.exit(_end("stopped at once; what was saved before stays.", 130))
        except Exception as error:
            code = _explain(error)
            if code is None:
                code = _announce(f"{type(error).__name__}: {' '.join(str(error).split())}; a traceback is above.", 1)
                if code is None:
                    raise
                traceback.print_exception(error)
            sys.exit(code)


def _explain(error: Exception) -> int | None:
    """Print an expected error in one line and return its exit code; return None for a bug of ours."""
    from grpaint.core.errors import (
        CheckpointError,
        ConfigError,
        GrpaintError,
        ProcessesEnded,
        RankLost,
        StopRequested,
    )
    from grpaint.core.importing import user_code_location
    from grpaint.core.user_code import describe

    if isinstance(error, GrpaintError):
        if isinstance(error, ProcessesEnded):
            return _end(str(error), error.exit_code) if str(error) else error.exit_code
        unreadable = isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError)
        code = 2 if unreadable or isinstance(error, ConfigError) else 1
        code = error.exit_code if isinstance(error, StopRequested) else code
        return _end(" ".join(str(error).split("\n")), code, lost=isinstance(error, RankLost) and not error.late)
    exit_code = getattr(error, "exit_code", None)
    if exit_code is not None and type(error).__name__ == "Stopped":
        return _end(f"stopped by {error} after saving; continue with --resume.", int(exit_code))
    if place := user_code_location(error):
        return _end(f"{place}: {describe(error)}", 1)
    if isinstance(error, OSError):
        way_out = "; fix that, or name another place." if error.filename else ""
        return _end(f"{error.filename or ''}: {error.strerror or error}{way_out}", 1)
    return None


def _end(message: str, code: int, *, lost: bool = False) -> int:
    """Print an error, and return the exit code; one process of many says it through the store of its group."""
    own = _announce(message, code, lost=lost)
    if own is None:
        from grpaint.report.console import echo

        echo(f"grpaint: {message}", err=True)
    return code if own is None else own


def _announce(message: str, code: int, *, lost: bool = False) -> int | None:
    """Say to the other processes of a run how it ends; return this one's exit code if that says it all, or None."""
    join = sys.modules.get("grpaint.parallel.join")
    return join.announce(message, code, lost=lost) if join else None
