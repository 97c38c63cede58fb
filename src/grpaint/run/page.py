"""The page of a run in its folder."""

import time
from collections.abc import Callable
from pathlib import Path

from grpaint.core.errors import ConfigError, GrpaintError
from grpaint.core.text import one_line
from grpaint.report.pages.run import run_page
from grpaint.run.record import is_run, read_record
from grpaint.storage.atomic import write_atomic

PAGE = "report.html"
MOST_REASON = 300  # characters of an error
SHARE = 0.01  # of a run's time that writing its page may take
QUICK_S = 1.0  # seconds of a writing that an evaluation is always worth


def write_page(folder: Path) -> Path:
    """Write the page of a run into its folder, in one step, and return it.

    Raises:
        ConfigError: ``folder`` is no run folder.
        OSError: it cannot be written.
    """
    file = folder / PAGE
    write_atomic(file, run_page(read_record(folder)), follow=False)  # a link in a foreign folder could lead anywhere
    return file


class PageWriter:
    """Writes the page of a run as it goes on; what goes wrong is a line for ``log``, once, and never the run's end."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.file, self._log, self._reported = folder.resolve() / PAGE, log, ""
        self._start, self._spent_s, self._last_s = time.monotonic(), 0.0, 0.0

    def refresh(self, *, evaluated: bool) -> None:
        """Write the page if writing stays below ``SHARE`` of the run's time, or if it is quick after an evaluation.

        The longer a run is, the longer its page takes; without this limit it would be written too often.
        """
        affordable = self._spent_s + self._last_s <= SHARE * (time.monotonic() - self._start)
        if affordable or (evaluated and self._last_s < QUICK_S):
            self.write()

    def write(self) -> None:
        """Write the page as the run folder is now."""
        start = time.monotonic()
        self._try()
        self._last_s = time.monotonic() - start
        self._spent_s += self._last_s

    def _try(self) -> None:
        try:
            write_page(self.file.parent)
        except Exception as error:  # noqa: BLE001 - reason: a page is worth no run
            text = str(error) if isinstance(error, GrpaintError | OSError) else f"{type(error).__name__}: {error}"
            reason = one_line(text, MOST_REASON)
            if reason != self._reported:
                self._log(
                    f"{self.file.name} could not be written ({reason}); the run goes on, and grpaint report writes the "
                    "page later"
                )
            self._reported = reason


def locate_run(name: str) -> Path:
    """Return the folder of a run, given as a path or as its name in runs/.

    Raises:
        ConfigError: there is no such run.
    """
    for folder in (Path(name), Path("runs") / name):
        if is_run(folder):
            return folder
    raise ConfigError(f"{name}: no run folder (without run.toml and metrics.jsonl), nor the name of one in runs/.")
