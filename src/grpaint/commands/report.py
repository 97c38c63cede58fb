"""``grpaint report``: write the page of a run, in its folder or as one file with its pictures inside."""

from pathlib import Path

from grpaint.report.console import echo
from grpaint.run.page import locate_run, write_page
from grpaint.run.single_page import write_single


def write_report(run: str, single: Path | None) -> None:
    """Write the page of ``run`` and print its address; with ``single`` only into that file, with the pictures inside.

    Raises:
        ConfigError: there is no such run.
        OSError: the page cannot be written.
    """
    folder = locate_run(run)
    if single is None:
        file = write_page(folder)
    else:
        file, lowered = single, write_single(folder, single)
        if lowered:
            echo(lowered)
    echo(f"{file.resolve().as_uri()} ({file.stat().st_size / 1e6:.1f} MB)")
