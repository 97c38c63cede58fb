"""Loggers of a run's numbers and pictures: TensorBoard, Weights & Biases, trackio; each needs its extra."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from grpaint.core.errors import ConfigError, MissingExtra, RunError
from grpaint.core.user_code import user_code
from grpaint.measures.score import score_text, score_unit
from grpaint.recipe.pieces import Logger
from grpaint.report.figures import picture_sheet, to_picture
from grpaint.run.pictures import Drawing


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line; rewards of an evaluation get the prefix ``held_out/``.

    The numbers of the model as ``[deploy]`` uses it get ``deploy/`` before all.
    """
    evaluation, deployed = "prompts" in line, line.get("deploy", {})
    return {f"deploy/{name}": value for name, value in (numbers(deployed) if deployed else {}).items()} | {
        f"held_out/{name}" if evaluation and name.startswith("reward") else name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@dataclass
class Sink:
    """Passes lines and pictures to a logger until it raises, which must not end the run: ``log`` then gets a line."""

    name: str
    logger: Logger
    log: Callable[[str], None]
    failed: bool = False

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        """Pass on a line of metrics.jsonl or evaluations.jsonl."""
        self._call(lambda: self.logger.write(iteration, line))

    def show(self, iteration: int, drawing: Drawing) -> None:
        """Pass on the pictures of an evaluation with their prompts and scores, if the logger takes pictures."""
        images = getattr(self.logger, "images", None)
        if images and drawing.evaluated and len(drawing.images):
            self._call(lambda: images(iteration, "held_out/pictures", drawing.images, _captions(drawing)))

    def _call(self, call: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            with user_code(f"loggers.{self.name}", RunError):
                call()
        except RunError as error:
            self.failed = True
            self.log(
                f"{error}; it gets no more lines and the run goes on; metrics.jsonl and evaluations.jsonl have all"
            )


def _captions(drawing: Drawing) -> list[str]:
    """Return each picture's prompt, with its score if it has one."""
    name = drawing.score
    scores = [f" ({score_text(name, value)}{score_unit(name)})" for value in drawing.scores.get(name, ())]
    return [
        caption + score for caption, score in zip(drawing.captions, scores or [""] * len(drawing.captions), strict=True)
    ]


def start_loggers(
    loggers: Mapping[str, Logger], folder: Path, settings: Mapping[str, Any], log: Callable[[str], None]
) -> list[Sink]:
    """Start every logger; return the sink of each.

    Raises:
        ConfigError: a logger does not start; the message names it.
    """
    for name, logger in loggers.items():
        with user_code(f"loggers.{name}", ConfigError):
            logger.start(folder, settings)
    return [Sink(name, logger, log) for name, logger in loggers.items()]


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

    def images(self, iteration: int, name: str, images: Tensor, captions: Sequence[str]) -> None:
        sheet = picture_sheet([("", images)], captions)
        self._writer.add_image(name, np.asarray(sheet), iteration, dataformats="HWC")
        self._writer.flush()


@dataclass
class Wandb:
    """Weights & Biases; ``mode = "offline"`` opens no socket."""

    project: str = "grpaint"
    mode: Literal["online", "offline", "disabled"] = "online"
    _run: Any = field(default=None, init=False, repr=False)
    _module: Any = field(default=None, init=False, repr=False)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("logger wandb", "wandb") from error
        self._run = wandb.init(
            project=self.project, name=folder.name, dir=str(folder), config=dict(settings), mode=self.mode
        )
        self._module = wandb

    def write(self, iteration: int, line: Mapping[str, Any]) -> None:
        self._run.log(numbers(line), step=iteration)

    def images(self, iteration: int, name: str, images: Tensor, captions: Sequence[str]) -> None:
        pairs = zip(images, captions, strict=True)
        pictures = [self._module.Image(to_picture(image), caption=caption) for image, caption in pairs]
        self._run.log({name: pictures}, step=iteration)


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

    def images(self, iteration: int, name: str, images: Tensor, captions: Sequence[str]) -> None:
        sheet = picture_sheet([("", images)], captions)
        self._module.log({name: self._module.Image(sheet)}, step=iteration)
