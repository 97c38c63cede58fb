"""Prompt files as a source of prompts for reinforcement learning: ``[data] kind = "prompts"``."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import permutation
from grpaint.images.data import check_split
from grpaint.images.order import held_out, stream
from grpaint.images.pictures import BadImage, fitted, read_picture, to_tensor
from grpaint.images.sources import json_lines, read_text

SUFFIXES = (".txt", ".jsonl", ".csv")


def read_prompts(file: Path, column: str) -> list[Prompt]:
    """The prompts of a file: a line each (.txt), or ``column`` of each row (.jsonl, .csv), the others as metadata.

    Raises:
        ConfigError: where a row has no prompt or cannot be read; with the line.
    """
    if file.suffix == ".txt":
        lines = [line.strip() for line in read_text(file).split("\n")]
        found = [Prompt(line) for line in lines if line]
    else:
        found = [_prompt(row, f"{file}:{number}", column) for number, row in _rows(file)]
    if not found:
        raise ConfigError(f"{file}: no prompt in it.")
    return found


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".jsonl":
        yield from json_lines(file)
        return
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                wanted = len(reader.fieldnames or ())
                raise ConfigError(f"{file}:{reader.line_num}: not the {wanted} columns that the first line names.")
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{file}:{reader.reader.line_num}: not CSV: {error}.") from None


def _prompt(row: dict[str, Any], where: str, column: str) -> Prompt:
    text = row.pop(column, None)
    if not isinstance(text, str) or not text.strip():
        names = ", ".join(row) or "none"
        raise ConfigError(f'{where}: no "{column}" to be its prompt; data.column names it. Others: {names}.')
    return Prompt(text.strip(), row)


@dataclass(frozen=True)
class PromptData:
    """Prompts from a .txt, .jsonl or .csv file; there are no images to train on, so it serves RL alone.

    ``column`` holds the prompt, all others are its metadata, for rewards. ``held_out_path``, or ``held_out_share`` of
    ``train`` by a hash of each prompt. ``references`` reads the image that column ``reference`` names, from the file's
    folder, as a square of ``resolution``. ``report_by``: the column by which evaluations are split.
    """

    train: str
    held_out_path: str = ""
    held_out_share: float = 0.1
    column: str = "prompt"
    references: bool = False
    resolution: int = 512
    report_by: str = ""

    score: ClassVar[str] = "reward"
    captioned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_split(self.held_out_path, self.held_out_share)
        for key, path in (("train", self.train), ("held_out_path", self.held_out_path)):
            if not Path(path).is_file() and (path or key == "train"):
                raise ValueError(f'{key} = "{path}": no such file; name your own (.txt, .jsonl, .csv)')
            if path and Path(path).suffix not in SUFFIXES:
                raise ValueError(f'{key} = "{path}": must end in {", ".join(SUFFIXES)}')
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")

    @cached_property
    def _sides(self) -> tuple[list[Prompt], list[Prompt]]:
        every = read_prompts(Path(self.train), self.column)
        if self.held_out_path:
            return every, read_prompts(Path(self.held_out_path), self.column)
        sides: tuple[list[Prompt], list[Prompt]] = [], []
        for prompt in every:
            sides[held_out(prompt.text, self.held_out_share)].append(prompt)
        if not all(sides):
            raise ConfigError(
                f"data.held_out_share = {self.held_out_share}: of {len(every)} prompts {len(sides[1])} are held out; "
                "choose another share, or name data.held_out_path."
            )
        return sides

    @property
    def training(self) -> list[Prompt]:
        """The prompts that are trained on, without their references."""
        return self._sides[0]

    def prepare(self, log: Callable[[str], None]) -> None:
        """Read the files, and every reference once.

        Raises:
            ConfigError: where a prompt or a reference is missing or cannot be read.
        """
        log(f"{self.train}: {len(self.training)} prompts to train on, {len(self._sides[1])} held out")
        for prompt in self.training if self.references else ():
            self._reference(prompt)

    def _reference(self, prompt: Prompt) -> Prompt:
        name = prompt.metadata.get("reference")
        if not isinstance(name, str) or not name:
            raise ConfigError(f'{self.train}: the prompt "{prompt.text}" names no image in column "reference".')
        file = Path(self.train).parent / name
        try:
            picture = fitted(read_picture(file.read_bytes()), (self.resolution, self.resolution))
        except (BadImage, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f'{file}: {why}; it is the reference of "{prompt.text}".') from None
        return Prompt(prompt.text, prompt.metadata, to_tensor([picture])[0])

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Training prompts of an iteration; each is drawn once an epoch."""
        places = stream((seed, "prompts"), len(self.training), iteration * count, count)
        chosen = [self.training[place] for place in places]
        return [self._reference(prompt) for prompt in chosen] if self.references else chosen

    def captions(self) -> list[str]:
        """Every prompt that a run may ask for."""
        return [prompt.text for side in self._sides for prompt in side]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """``count`` held-out prompts, or as many as there are."""
        prompts = self._sides[1]
        return [prompts[place] for place in permutation((seed, "held-out"), len(prompts))[:count].tolist()]

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Refused."""
        self._no_images()

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Refused."""
        self._no_images()

    def _no_images(self) -> NoReturn:
        raise ConfigError('data.kind = "prompts" has no images to train on; use data.kind = "images".')

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """None: the recipe's rewards are the score."""
        return {}

    def category(self, prompt: Prompt) -> str:
        """The value of column ``report_by``."""
        return str(prompt.metadata.get(self.report_by, "other")) if self.report_by else "all"
