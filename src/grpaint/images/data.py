"""Captioned images as a source of prompts and batches: ``[data] kind = "images"``."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import permutation, seed_of, uniform
from grpaint.images import buckets
from grpaint.images.buckets import Size
from grpaint.images.collection import Collection, Item, Wanted, metadata, parallel
from grpaint.images.order import held_out, stream, turn
from grpaint.images.pictures import to_tensor
from grpaint.images.tags import SAID, Tags, sentence
from grpaint.scenes.shapes import SIDE
from grpaint.scenes.world import caption_of, judge


def check_split(path: str, share: float) -> None:
    """Refuse a split that says neither, or a share that is none."""
    if not path and not 0 < share < 1:
        raise ValueError(f"held_out_share must lie in (0, 1), got {share}; or name held_out_path")


@dataclass(frozen=True)
class ImageData:
    """Captioned images from a folder, tar shards, parquet, or a Hugging Face data set on disk.

    - ``train``, ``held_out_path``; without the second ``held_out_share`` of ``train``, by a hash of each caption, so
      that an image stays on its side whatever is added, and equal captions on one. ``caption``, ``image``: columns.
    - ``resolution``: pixels a side of a square, the middle of each image; with ``buckets`` the size of about that area
      whose shape is nearest, in steps of ``bucket_step``, one size a batch.
    - ``caption_dropout``: the share of empty captions in :meth:`batch`. ``references`` gives RL prompts their image.
    - ``tags`` reads booru tags. ``report_by``: the column by which evaluations are split.
    """

    train: str
    held_out_path: str = ""
    held_out_share: float = 0.02
    caption: str = "text"
    image: str = "image"
    resolution: int = 512
    buckets: bool = False
    bucket_step: int = 64
    caption_dropout: float = 0.1
    references: bool = False
    tags: Tags | None = None
    report_by: str = ""

    score: ClassVar[str] = "reward"
    captioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_split(self.held_out_path, self.held_out_share)
        for key, path in (("train", self.train), ("held_out_path", self.held_out_path)):
            if not Path(path).exists() or not (path or key == "held_out_path"):
                raise ValueError(f'{key} = "{path}": no such file or folder')
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")
        if self.buckets and not 1 <= self.bucket_step <= self.resolution:
            raise ValueError(f"bucket_step must lie in 1 .. resolution = {self.resolution}, got {self.bucket_step}")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}")

    def _collection(self, key: str, path: str) -> Collection:
        return Collection(Path(path), f"data.{key}", Wanted(self.caption, self.image, self.tags))

    @cached_property
    def collections(self) -> list[Collection]:
        """The training images, and the held-out ones where they lie elsewhere."""
        given = [("train", self.train), ("held_out_path", self.held_out_path)]
        return [self._collection(key, path) for key, path in given if path]

    @cached_property
    def _sides(self) -> tuple[list[Item], list[Item]]:
        items = self.collections[0].items
        if self.held_out_path:
            return items, self.collections[1].items
        sides: tuple[list[Item], list[Item]] = [], []
        for item in items:
            sides[held_out(item.said, self.held_out_share)].append(item)
        for side, name in zip(sides, ("training", "held out"), strict=True):
            if not side:
                raise ConfigError(
                    f"data.held_out_share = {self.held_out_share}: of {len(items)} images none is {name}; choose "
                    "another share, or name data.held_out_path."
                )
        return sides

    @property
    def training(self) -> list[Item]:
        """The images that are trained on."""
        return self._sides[0]

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes (width, height) that a batch may have."""
        square = (self.resolution, self.resolution)
        return buckets.sizes(self.resolution, self.bucket_step) if self.buckets else (square,)

    def by_size(self, items: Sequence[Item]) -> dict[Size, list[Item]]:
        """Items by the size that they are brought to."""
        out: dict[Size, list[Item]] = {}
        for item in items:
            out.setdefault(buckets.nearest(item.size, self.sizes), []).append(item)
        return dict(sorted(out.items()))

    @cached_property
    def _buckets(self) -> list[tuple[Size, list[Item]]]:
        return list(self.by_size(self.training).items())

    @cached_property
    def _thresholds(self) -> tuple[tuple[float, str], ...]:
        scores = [item.tagged.score for item in self.training if item.tagged and item.tagged.score is not None]
        return self.tags.thresholds(scores) if self.tags else ()

    def prepare(self, log: Callable[[str], None]) -> None:
        """Read every file once, unless that was done before, and say what is there.

        Raises:
            ConfigError: where captions are missing, or nothing is left to train on or to judge by.
        """
        for collection in self.collections:
            log(f"{collection.key} {collection.path}: {collection.account()}")
            for name, why in list(collection.bad.items())[:20]:
                log(f"  left out: {name}: {why}")
        sizes = ", ".join(f"{width} x {high}: {len(items)}" for (width, high), items in self._buckets)
        log(f"{len(self.training)} to train on ({sizes}), {len(self._sides[1])} held out")

    def prompt(self, item: Item, draw: random.Random | None = None, reference: Tensor | None = None) -> Prompt:
        """An item's caption with all that is known about it; tags in an order of chance where there is a ``draw``.

        With tags, ``metadata["tags"]`` has them all, save quality and rating, and ``metadata["sentence"]`` says them in
        prose, unless the sidecar has a ``sentence`` of its own.
        """
        known = dict(metadata(item))
        if not (self.tags and item.tagged):
            return Prompt(item.caption, known, reference)
        arranged = self.tags.by_category(item.tagged, self._thresholds)
        known |= {"tags": [tag for category, tags in arranged.items() if category in SAID for tag in tags]}
        known.setdefault("sentence", sentence(item.tagged.tags))
        return Prompt(self.tags.caption(arranged, draw), known, reference)

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Training captions of an iteration; each is drawn once an epoch."""
        places = stream((seed, "prompts"), len(self.training), iteration * count, count)
        items = [self.training[place] for place in places]
        pictures = list(self._tensors(items, self._square)) if self.references else [None] * count
        draws = [random.Random(seed_of(seed, iteration, "prompts", row)) for row in range(count)]
        return [self.prompt(*row) for row in zip(items, draws, pictures, strict=True)]

    def captions(self) -> list[str]:
        """Every caption that a run may ask for; of tags in an order of chance the held-out ones alone."""
        drawn = self.tags and (self.tags.shuffle != "none" or self.tags.dropout)
        return [self.prompt(item).text for item in (*self._sides[1], *(() if drawn else self.training))]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """``count`` held-out captions, or as many as there are."""
        return [self.prompt(item) for item in self._judged(self._sides[1], count, seed)]

    def _judged(self, items: Sequence[Item], count: int, seed: int) -> list[Item]:
        return [items[place] for place in permutation((seed, "held-out"), len(items))[:count].tolist()]

    def batch(self, count: int, iteration: int, seed: int) -> tuple[Tensor, list[Prompt]]:
        """Images ``[count, 3, h, w]`` of one size and their captions, some empty; each image once an epoch."""
        bucket, before = turn((seed, "buckets"), [len(items) for _, items in self._buckets], iteration)
        size, among = self._buckets[bucket]
        places = stream((seed, "batch", *size), len(among), before * count, count)
        items = [among[place] for place in places]
        key = (seed, iteration, "batch")
        empty = (uniform((*key, "dropout"), count) < self.caption_dropout).tolist()
        prompts = [
            Prompt("") if drop else self.prompt(item, random.Random(seed_of(*key, row)))
            for row, (item, drop) in enumerate(zip(items, empty, strict=True))
        ]
        return self._tensors(items, size), prompts

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """``count`` held-out images of the commonest size and their captions, or as many as there are."""
        size, items = max(self.by_size(self._sides[1]).items(), key=lambda pair: len(pair[1]))
        chosen = self._judged(items, count, seed)
        return CaptionedImages([self.prompt(item) for item in chosen], lambda rows: self._tensors(chosen[rows], size))

    @property
    def _square(self) -> Size:
        return self.resolution, self.resolution

    def _tensors(self, items: Sequence[Item], size: Size) -> Tensor:
        return to_tensor(parallel(lambda item: item.picture(size), items))

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """None: images that nobody drew have no true answer, and the recipe's rewards are the score."""
        return {}

    def category(self, prompt: Prompt) -> str:
        """The value of column ``report_by``."""
        return str(prompt.metadata.get(self.report_by, "other")) if self.report_by else "all"


@dataclass(frozen=True)
class DrawnImages(ImageData):
    """Images of drawn scenes, as ``grpaint data draw`` makes them: captioned images that the checker can judge.

    Every sidecar has a ``sentence`` that the grammar of the embedded world reads.
    """

    resolution: int = SIDE

    score: ClassVar[str] = "strict"

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The checker's: ``strict``, ``soft``, ``background``, ``patch_energy``."""
        return vars(judge(images, prompts))

    def category(self, prompt: Prompt) -> str:
        """The task kind, or the value of column ``report_by``."""
        return super().category(prompt) if self.report_by else caption_of(prompt).kind
