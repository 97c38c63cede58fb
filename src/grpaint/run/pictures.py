"""Pictures that a run saves while it goes on: held-out prompts over time, and the last rollout."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from grpaint.images.encoding import eight_bit, eight_bit_picture
from grpaint.learn.table import RewardTable
from grpaint.parallel.world import World
from grpaint.recipe.pieces import Data
from grpaint.rollout.rollout import Rollout
from grpaint.storage.atomic import atomic_folder, write_atomic
from grpaint.storage.files import numbered

HELD_OUT, ROLLOUT = Path("held-out"), Path("rollout")  # below samples/
ROLLOUT_FILE = "rollout.json"
PROMPTS_FILE = "held-out.json"  # in the run folder
SIDE, ROLLOUT_SIDE = 512, 192  # pixels of the longer side at most
LOSSLESS_SIDE = 64  # pixels up to which a loss would hide the grain that one looks for
ROLLOUT_IMAGES = 512  # at most, in whole groups
FEW = 8  # images that are reduced at once: their copies in fp32 take memory


@dataclass(frozen=True)
class Drawing:
    """Images of the same held-out prompts and start noise, as the model draws them at one time.

    ``images``: eight bits, ``[b, 3, h, w]``; ``kinds``: the category of each prompt; ``scores``: ``[b]`` by measure,
    of which ``score`` names the one that ranks evaluations. ``evaluated``: whether an evaluation drew them.
    """

    captions: Sequence[str]
    kinds: Sequence[str]
    score: str
    scores: Mapping[str, Sequence[float]]
    images: Tensor
    evaluated: bool

    def line(self, iteration: int) -> dict[str, Any]:
        """Return its line of pictures.jsonl."""
        words = {"captions": list(self.captions), "kinds": list(self.kinds), "score": self.score}
        return {"iteration": iteration} | words | {"scores": {name: list(row) for name, row in self.scores.items()}}


def held_out_file(iteration: int, number: int) -> str:
    """Return the file of a held-out picture, relative to the run folder."""
    return f"samples/{HELD_OUT.name}/{iteration:06d}/{number:02d}.webp"


def rollout_file(group: int, member: int) -> str:
    """Return the name of a rollout's picture in its folder."""
    return f"{group:03d}-{member:03d}.webp"


def save_prompts(run: Path, captions: Sequence[str]) -> None:
    """Write all held-out prompts of a run, in the order of its evaluations.

    Raises:
        OSError: they cannot be written.
    """
    write_atomic(run / PROMPTS_FILE, json.dumps({"captions": list(captions)}) + "\n")


def save_drawing(samples: Path, iteration: int, images: Tensor) -> None:
    """Write the pictures of a drawing, all or none.

    Raises:
        OSError: they cannot be written.
    """
    with atomic_folder(samples / HELD_OUT / f"{iteration:06d}", replace=True) as folder:
        for number, image in enumerate(images):
            _save(image, folder / Path(held_out_file(iteration, number)).name, SIDE)


def remove_pictures(samples: Path, iteration: int) -> None:
    """Remove the pictures of iterations after ``iteration``."""
    for folder in (*numbered(samples / HELD_OUT), *numbered(samples / ROLLOUT)):
        if int(folder.name) > iteration:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class RolloutImages:
    """The first whole groups of a rollout with their images in eight bits, small; ``total``: the prompts of all."""

    groups: Sequence[Mapping[str, Any]]
    images: Tensor
    total: int


def rollout_images(
    rollout: Rollout, whole: Rollout, table: RewardTable, advantage: Tensor, images: Tensor, data: Data, world: World
) -> RolloutImages:
    """Gather the images of a rollout's first groups, at most ``ROLLOUT_IMAGES``, with their scores and advantages.

    ``images``: this process's, in the order of ``rollout``; ``whole`` has the rows of all processes, as ``table`` and
    ``advantage`` do. An advantage by step is shown as its mean over steps.
    """
    counts = whole.group.bincount(minlength=len(whole.prompts))
    shown = max(1, int((counts.cumsum(0) <= ROLLOUT_IMAGES).sum()))
    gathered = world.gather({"images": images[rollout.group < shown]})["images"]
    rows_of_images = (whole.group < shown).nonzero().flatten().tolist()
    place = {row: number for number, row in enumerate(rows_of_images)}
    total, mean_advantage = table.total(), advantage.reshape(len(advantage), -1).mean(1)
    groups, order = [], []
    for number in range(shown):
        rows = (whole.group == number).nonzero().flatten()
        order += [place[row] for row in rows.tolist()]
        prompt = whole.prompts[number]
        scores = {name: _applied(table, name, rows) for name in table.columns}
        values = {"rewards": scores, "total": _per_row(total[rows]), "advantage": mean_advantage[rows].tolist()}
        groups.append({"caption": prompt.text, "kind": data.category(prompt)} | values)
    return RolloutImages(groups, gathered[order], len(whole.prompts))


def _per_row(scores: Tensor) -> list[float]:
    """Return one number a row: that of the finished image, where there is one by step."""
    return scores.reshape(len(scores), -1)[:, -1].tolist()


def _applied(table: RewardTable, name: str, rows: Tensor) -> list[float | None]:
    """Return a reward's score of each row; None where it does not apply."""
    scores, applies = _per_row(table.columns[name][rows]), table.applies.get(name)
    flags = [True] * len(scores) if applies is None else applies[rows].tolist()
    return [score if flag else None for score, flag in zip(scores, flags, strict=True)]


def small_images(images: Tensor) -> Tensor:
    """Return images in [0, 1] in eight bits on the CPU, reduced to at most ``ROLLOUT_SIDE`` pixels a side."""
    side = max(images.shape[-2:])
    if side > ROLLOUT_SIDE:
        size = [max(1, round(length * ROLLOUT_SIDE / side)) for length in images.shape[-2:]]
        few = (torch.nn.functional.interpolate(part.float(), size, mode="area") for part in images.split(FEW))
        return torch.cat([eight_bit(part).cpu() for part in few])
    return eight_bit(images).cpu()


def save_rollout(samples: Path, iteration: int, rollout: RolloutImages) -> None:
    """Write the last rollout in place of the one before it.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_folder(samples / ROLLOUT / f"{iteration:06d}", replace=True) as folder:
        number = 0
        for group, values in enumerate(rollout.groups):
            for member in range(len(values["total"])):
                _save(rollout.images[number], folder / rollout_file(group, member), ROLLOUT_SIDE)
                number += 1
        record = {"iteration": iteration, "prompts": rollout.total, "groups": list(rollout.groups)}
        (folder / ROLLOUT_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")
    for earlier in numbered(samples / ROLLOUT):
        if int(earlier.name) < iteration:
            shutil.rmtree(earlier)


def _save(image: Tensor, file: Path, side: int) -> None:
    """Write a picture as WebP, reduced to ``side`` pixels; a small one keeps every level."""
    picture = eight_bit_picture(image)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    if max(picture.size) <= LOSSLESS_SIDE:
        picture.save(file, "WEBP", lossless=True, quality=50, method=0, exact=True)
    else:
        picture.save(file, "WEBP", quality=90, method=2)
