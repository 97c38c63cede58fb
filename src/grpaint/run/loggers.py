"""Loggers that receive the numbers of metrics.jsonl: TensorBoard, Weights & Biases, trackio; each needs its extra."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grpaint.core.errors import ConfigError, MissingExtra, RunError
from grpaint.core.user_code import user_code
from grpaint.recipe.pieces import Logger


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line; rewards of an evaluation get the prefix ``held_out/``."""
    evaluation = "prompts" in line
    return {
        f"held_out/{name}" if evaluation and name.startswith("reward") else name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@dataclass
class _Sink:
    """Passes lines to a logger until it raises, which must not end the run: ``log`` then gets a line with its name."""

    name: str
    logger: Logger
    log: Callable[[str], None]
    failed: bool = False

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        if self.failed:
            return
        try:
            with user_code(f"loggers.{self.name}", RunError):
                self.logger.write(iteration, line)
        except RunError as error:
            self.failed = True
            self.log(
                f"{error}; it gets no more lines and the run goes on; metrics.jsonl and evaluations.jsonl have all"
            )


def start_loggers(
    loggers: Mapping[str, Logger], folder: Path, settings: Mapping[str, Any], log: Callable[[str], None]
) -> list[Callable[[int, dict[str, Any]], None]]:
    """Start every logger; return functions that pass an iteration and its line to one logger each.

    Raises:
        ConfigError: a logger does not start; the message names it.
    """
    for name, logger in loggers.items():
        with user_code(f"loggers.{name}", ConfigError):
            logger.start(folder, settings)
    return [_Sink(name, logger, log).write for name, logger in loggers.items()]


@dataclass
class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    _writer: Any = field(default=None, init=False, repr=False)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("logger tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()


@dataclass
class Wandb:
    """Weights & Biases; ``mode = "offline"`` opens no socket."""

    project: str = "grpaint"
    mode: Literal["online", "offline", "disabled"] = "online"
    _run: Any = field(default=None, init=False, repr=False)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("logger wandb", "wandb") from error
        self._run = wandb.init(
            project=self.project, name=folder.name, dir=str(folder), config=dict(settings), mode=self.mode
        )

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        self._run.log(numbers(line), step=iteration)


@dataclass
class Trackio:
    """trackio, a local-first tracker with the interface of Weights & Biases."""

    project: str = "grpaint"
    _module: Any = field(default=None, init=False, repr=False)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import trackio
        except ImportError as error:
            raise MissingExtra("logger trackio", "trackio") from error
        trackio.init(project=self.project, name=folder.name, config=dict(settings))
        self._module = trackio

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        self._module.log(numbers(line), step=iteration)
