"""The page of a run in its folder."""

from pathlib import Path

from grpaint.core.errors import ConfigError
from grpaint.report.pages.run import run_page
from grpaint.run.record import is_run, read_record
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


def locate_run(name: str) -> Path:
    """Return the folder of a run, given as a path or as its name in runs/.

    Raises:
        ConfigError: there is no such run.
    """
    for folder in (Path(name), Path("runs") / name):
        if is_run(folder):
            return folder
    raise ConfigError(f"{name}: no run folder (without run.toml and metrics.jsonl), nor the name of one in runs/.")
