"""The run folder as the ranks besides the first see it: they read it, and write nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpaint.run.folder import RunFolder
from grpaint.run.pictures import Drawing, RolloutImages
from grpaint.run.state import STATE_FILE


class ReadOnlyRun(RunFolder):
    """A run folder that rank 0 writes; ``checkpoint`` is the name of the one from which the run goes on, if any."""

    def __init__(self, path: Path, checkpoint: str | None) -> None:
        super().__init__(path)
        self.resumable = self.checkpoints / checkpoint if checkpoint else None

    def trouble(self) -> str:
        """Return what this machine does not see of the run, or an empty text."""
        if not (self.path / "run.toml").is_file():
            return f"does not see {self.path}"
        if self.resumable and not (self.resumable / STATE_FILE).is_file():
            return f"does not see {self.resumable}, from which the run goes on"
        return ""

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: rank 0 writes."""

    def status(self, **changes: Any) -> None:
        """Do nothing: rank 0 writes."""

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Do nothing: rank 0 writes."""

    def add_drawing(self, iteration: int, drawing: Drawing) -> None:
        """Do nothing: rank 0 writes."""

    def add_rollout(self, iteration: int, rollout: RolloutImages) -> None:
        """Do nothing: rank 0 writes."""

    def cut(self, iteration: int) -> None:
        """Do nothing: rank 0 writes."""

    def save(self, iteration: int, write: Callable[[Path], None]) -> Path:
        """Do nothing: rank 0 writes."""
        return self.checkpoints / f"{iteration:06d}"

    def thin(self, iteration: int, keep: int, best: int | None) -> None:
        """Do nothing: rank 0 writes."""

    def discard(self) -> None:
        """Do nothing: rank 0 writes."""
