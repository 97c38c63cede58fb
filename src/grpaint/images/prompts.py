"""Prompt files as a source of prompts for reinforcement learning: the ``[data]`` table with ``kind = "prompts"``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from grpaint.core.bounds import MOST_SIDE, check_range
from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import permutation
from grpaint.core.text import printable
from grpaint.images.data import check_split, first_missing, no_split
from grpaint.images.order import epoch_order, is_held_out
from grpaint.images.pictures import BadImage, crop_to, read_picture, to_tensor
from grpaint.images.sidecars import is_missing
from grpaint.images.sources import read_image_file
from grpaint.storage.confined import as_spelt, inside
from grpaint.storage.reading import csv_rows, json_lines, read_text, text_lines

SUFFIXES = (".txt", ".jsonl", ".csv")


def read_prompts(file: Path, column: str) -> list[Prompt]:
    """Read the prompts of a file: each line of a .txt, or ``column`` of each row of a .jsonl or .csv.

    The other columns become the prompt's metadata.

    Raises:
        ConfigError: if a row has no prompt or cannot be read, with its line; or if the file has no prompt.
    """
    suffix = file.suffix.lower()
    if suffix == ".txt":
        prompts = [
            _line_prompt(line, f"{file}:{n}") for n, line in enumerate(text_lines(read_text(file)), 1) if line.strip()
        ]
    else:
        read_rows = json_lines if suffix == ".jsonl" else csv_rows
        prompts = [_prompt(row, f"{file}:{number}", column) for number, row in read_rows(file)]
    if not prompts:
        raise ConfigError(f"{file}: no prompt in it.")
    return prompts


def _line_prompt(line: str, location: str) -> Prompt:
    if is_missing(line):
        raise ConfigError(f'{location}: "{line.strip()}" is what programs write where there is no prompt; take it out.')
    return Prompt(line.strip())


def _prompt(row: dict[str, Any], location: str, column: str) -> Prompt:
    text = row.pop(column, None)
    if not isinstance(text, str) or is_missing(text):
        names = ", ".join(row) or "none"
        raise ConfigError(
            f'{location}: no prompt in column "{column}"; data.column names the column. Other columns: {names}.'
        )
    return Prompt(text.strip(), row)


@dataclass(frozen=True)
class PromptData:
    """Prompts from a .txt, .jsonl or .csv file, for reinforcement learning only: there are no images to train on.

    - ``train`` and ``held_out_path``: the files. Without ``held_out_path``, ``held_out_share`` of ``train`` is held out
      by a hash of each prompt.
    - ``column``: the column with the prompt; the others are its metadata, for rewards.
    - ``references``: read the image that column ``reference`` names, relative to the folder of ``train``, and crop it
      to a square of ``resolution`` pixels a side.
    - ``report_by``: the column by which evaluations are split.
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
            if (path or key == "train") and Path(path).suffix.lower() not in SUFFIXES:
                raise ValueError(f'{key} = "{path}": must end in {", ".join(SUFFIXES)}')
        check_range(self, 1, MOST_SIDE, "resolution")

    @property
    def missing(self) -> str:
        """The first file that is not there, with its setting; empty if all are."""
        return first_missing(self, "file; name your own (.txt, .jsonl, .csv)")

    @cached_property
    def _sides(self) -> tuple[list[Prompt], list[Prompt]]:
        """The training and the held-out prompts."""
        if self.missing:
            raise ConfigError(f"{self.missing}.")
        prompts = read_prompts(Path(self.train), self.column)
        if self.held_out_path:
            return prompts, read_prompts(Path(self.held_out_path), self.column)
        sides: tuple[list[Prompt], list[Prompt]] = [], []
        for prompt in prompts:
            sides[is_held_out(prompt.text, self.held_out_share)].append(prompt)
        if not all(sides):
            reason = f"of {len(prompts)} prompts {len(sides[1])} are held out"
            raise no_split(self.held_out_share, reason, len({prompt.text for prompt in prompts}))
        return sides

    @property
    def training(self) -> list[Prompt]:
        """The training prompts, without their references."""
        return self._sides[0]

    def prepare(self, log: Callable[[str], None]) -> None:
        """Read the files, verify every reference, and log how many prompts there are.

        Raises:
            ConfigError: if a prompt or a reference is missing or cannot be read.
        """
        log(f"{self.train}: {len(self.training)} prompts to train on, {len(self._sides[1])} held out")
        for prompt in self.training if self.references else ():
            self._with_reference(prompt)

    def _with_reference(self, prompt: Prompt) -> Prompt:
        name = prompt.metadata.get("reference")
        subject = f'"{printable(prompt.text, 200)}"'
        if not isinstance(name, str) or not name:
            raise ConfigError(f'{self.train}: the prompt {subject} names no image in column "reference".')
        folder = Path(self.train).parent
        file = inside(folder, as_spelt(folder, name), f"{self.train}: the reference of {subject}")
        try:
            picture = crop_to(read_picture(read_image_file(file)), (self.resolution, self.resolution))
        except BadImage as error:
            raise ConfigError(f"{file}: {error}; it is the reference of {subject}.") from None
        return Prompt(prompt.text, prompt.metadata, to_tensor([picture])[0])

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Return the training prompts of an iteration; each is drawn once an epoch."""
        positions = epoch_order((seed, "prompts"), len(self.training), iteration * count, count)
        prompts = [self.training[position] for position in positions]
        return [self._with_reference(prompt) for prompt in prompts] if self.references else prompts

    def captions(self) -> list[str]:
        """List the text of every prompt that a run may use."""
        return [prompt.text for side in self._sides for prompt in side]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Return ``count`` held-out prompts, or all of them if there are fewer."""
        prompts = self._sides[1]
        return [prompts[position] for position in permutation((seed, "held-out"), len(prompts))[:count].tolist()]

    def batch(self, count: int, iteration: int, seed: int) -> CaptionedImages:
        """Raise ConfigError: there are no images."""
        self._raise_no_images()

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Raise ConfigError: there are no images."""
        self._raise_no_images()

    def _raise_no_images(self) -> NoReturn:
        raise ConfigError('data.kind = "prompts" has no images to train on; use data.kind = "images".')

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return no measures: the recipe's rewards are the score."""
        return {}

    def category(self, prompt: Prompt) -> str:
        """Return the prompt's value in column ``report_by``; "all" without such a column."""
        return str(prompt.metadata.get(self.report_by, "other")) if self.report_by else "all"
