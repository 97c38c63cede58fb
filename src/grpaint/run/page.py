"""The page of a run in its folder, and as one file with its pictures inside."""

import os
from pathlib import Path

from grpaint.report.pages.run import run_page
from grpaint.run.record import read_record
from grpaint.storage.atomic import write_atomic

PAGE = "report.html"


def write_page(folder: Path) -> Path:
    """Write the page of a run into its folder, in one step, and return it.

    Raises:
        ConfigError: ``folder`` is no run folder.
        OSError: it cannot be written.
    """
    file = folder / PAGE
    write_atomic(file, run_page(read_record(folder)))
    return file
