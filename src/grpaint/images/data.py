"""Captioned images as a source of prompts and batches: the ``[data]`` table with ``kind = "images"``."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from grpaint.core.bounds import MOST_SIDE, check_range
from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import permutation, seed_of, uniform
from grpaint.core.text import printable
from grpaint.images import buckets
from grpaint.images.booru import SIDECAR_CATEGORIES
from grpaint.images.buckets import Size
from grpaint.images.collection import CaptionedImage, Collection, ReadOptions, map_in_threads, prompt_metadata
from grpaint.images.order import draw_bucket, epoch_order, is_held_out
from grpaint.images.pictures import Profiles, to_tensor
from grpaint.images.tags import TagSettings, sentence
from grpaint.scenes.shapes import SIDE
from grpaint.scenes.world import caption_of, judge


def check_split(path: str, share: float) -> None:
    """Check that a held-out path is named, or a held-out share in (0, 1).

    Raises:
        ValueError: if neither is.
    """
    if not path and not 0 < share < 1:
        raise ValueError(f"held_out_share must lie in (0, 1), got {share}; or name held_out_path")


def no_split(share: float, reason: str, captions: int) -> ConfigError:
    """Return the error for a share that leaves a side empty; ``captions`` counts the different ones.

    The split goes by captions, so no share can divide images or prompts that have one caption.
    """
    way_out = "choose another share, or name data.held_out_path"
    if captions == 1:
        way_out = "all have one caption, which decides the side, so no share divides them; name data.held_out_path"
    return ConfigError(f"data.held_out_share = {share}: {reason}; {way_out}.")


def first_missing(data: Any, what: str) -> str:
    """Return which of the data's paths does not exist, with its setting, as "no such" ``what``; empty if all do."""
    for key in ("train", "held_out_path"):
        path = getattr(data, key)
        if path and not os.path.exists(path):
            return f'data.{key} = "{printable(path, 200)}": no such {what}'
    return ""


@dataclass(frozen=True)
class ImageData:
    """Captioned images from a folder, tar shards, parquet, or a Hugging Face data set on disk.

    - ``train`` and ``held_out_path``: the images. Without ``held_out_path``, ``held_out_share`` of ``train`` is held
      out by a hash of each caption: an image stays on its side when others are added, and equal captions share a side.
    - ``caption``, ``image``: the names of the columns with the caption and (in tables) the image.
    - ``resolution``: each image is cropped to a square of so many pixels a side. With ``buckets`` it is cropped to the
      size of about that area whose aspect ratio is nearest, in steps of ``bucket_step``; a batch has one size.
    - ``caption_dropout``: the share of empty captions in :meth:`batch`.
    - ``references``: give each RL prompt its image as the reference.
    - ``tags``: read booru tags as captions. ``profiles``: "convert" the colours of embedded ICC profiles to sRGB, or
      "ignore" them. ``report_by``: the column by which evaluations are split.
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
    tags: TagSettings | None = None
    profiles: Profiles = "convert"
    report_by: str = ""

    score: ClassVar[str] = "reward"
    captioned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_split(self.held_out_path, self.held_out_share)
        if not self.train:
            raise ValueError("train must name a file or a folder")
        check_range(self, 1, MOST_SIDE, "resolution")
        if self.buckets and not 1 <= self.bucket_step <= self.resolution:
            raise ValueError(f"bucket_step must lie in 1 .. resolution = {self.resolution}, got {self.bucket_step}")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in [0, 1), got {self.caption_dropout}")

    def _collection(self, key: str, path: str) -> Collection:
        options = ReadOptions(self.caption, self.image, self.tags, self.profiles)
        return Collection(Path(path), f"data.{key}", options)

    @cached_property
    def collections(self) -> list[Collection]:
        """The training images, and the held-out images if they have a path of their own."""
        paths = [("train", self.train), ("held_out_path", self.held_out_path)]
        return [self._collection(key, path) for key, path in paths if path]

    @property
    def missing(self) -> str:
        """The first path where nothing is, with its setting; empty if there is something at all of them."""
        return first_missing(self, "file or folder")

    @cached_property
    def _sides(self) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
        """The training and the held-out images."""
        if self.missing:
            raise ConfigError(f"{self.missing}.")
        images = self.collections[0].images
        if self.held_out_path:
            return images, self.collections[1].images
        sides: tuple[list[CaptionedImage], list[CaptionedImage]] = [], []
        for image in images:
            sides[is_held_out(image.split_text, self.held_out_share)].append(image)
        for side, name in zip(sides, ("training", "held out"), strict=True):
            if not side:
                texts = {image.split_text for image in images}
                raise no_split(self.held_out_share, f"of {len(images)} images none is {name}", len(texts))
        return sides

    @property
    def training(self) -> list[CaptionedImage]:
        """The training images."""
        return self._sides[0]

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes (width, height) that a batch may have, in pixels."""
        square = (self.resolution, self.resolution)
        return buckets.sizes(self.resolution, self.bucket_step) if self.buckets else (square,)

    def by_size(self, images: Sequence[CaptionedImage]) -> dict[Size, list[CaptionedImage]]:
        """Group images by the size to which they are cropped."""
        out: dict[Size, list[CaptionedImage]] = {}
        for image in images:
            out.setdefault(buckets.nearest(image.size, self.sizes), []).append(image)
        return dict(sorted(out.items()))

    @cached_property
    def _buckets(self) -> list[tuple[Size, list[CaptionedImage]]]:
        return list(self.by_size(self.training).items())

    @cached_property
    def _thresholds(self) -> tuple[tuple[float, str], ...]:
        """The least score of each quality tag, from the scores of the training images."""
        if not (self.tags and self.tags.quality):
            return ()
        scores = [image.tags.score for image in self.training if image.tags and image.tags.score is not None]
        return self.tags.thresholds(scores)

    def prepare(self, log: Callable[[str], None]) -> None:
        """Verify every file, unless the cache has its scan, and log how many images there are.

        Raises:
            ConfigError: if captions are missing, or no image is left to train on or to hold out.
        """
        for collection in self.collections:
            log(f"{collection.key} {collection.path}: {collection.summary()}")
            for name, reason in list(collection.left_out_files.items())[:20]:
                log(f"  left out: {name}: {reason}")
        sizes = ", ".join(f"{width} x {height}: {len(images)}" for (width, height), images in self._buckets)
        log(f"{len(self.training)} to train on ({sizes}), {len(self._sides[1])} held out")

    def prompt(
        self, image: CaptionedImage, rng: random.Random | None = None, reference: Tensor | None = None
    ) -> Prompt:
        """Return an image's caption as a prompt with its metadata; tags are shuffled and dropped only with ``rng``.

        With tags, ``metadata["tags"]`` lists them all except quality and rating, and ``metadata["sentence"]`` has them
        in prose, unless the sidecar has a ``sentence`` of its own.
        """
        metadata = dict(prompt_metadata(image))
        if not (self.tags and image.tags):
            return Prompt(image.caption, metadata, reference)
        by_category = self.tags.arrange(image.tags, self._thresholds)
        metadata["tags"] = [
            tag for category, tags in by_category.items() if category in SIDECAR_CATEGORIES for tag in tags
        ]
        metadata.setdefault("sentence", sentence(image.tags.by_category))
        return Prompt(self.tags.caption(by_category, rng), metadata, reference)

    def prompts(self, count: int, iteration: int, seed: int) -> list[Prompt]:
        """Return the training prompts of an iteration; each caption is drawn once per epoch."""
        positions = epoch_order((seed, "prompts"), len(self.training), iteration * count, count)
        images = [self.training[position] for position in positions]
        references = list(self._load(images, self._square)) if self.references else [None] * count
        rngs = [random.Random(seed_of(seed, iteration, "prompts", row)) for row in range(count)]
        return [self.prompt(*row) for row in zip(images, rngs, references, strict=True)]

    def captions(self) -> list[str]:
        """List the held-out captions, and the training captions unless their tags are shuffled or dropped at random."""
        random_captions = self.tags and (self.tags.shuffle != "none" or self.tags.dropout)
        return [self.prompt(image).text for image in (*self._sides[1], *(() if random_captions else self.training))]

    def held_out(self, count: int, seed: int) -> list[Prompt]:
        """Return ``count`` held-out prompts, or all of them if there are fewer."""
        return [self.prompt(image) for image in self._draw_held_out(self._sides[1], count, seed)]

    def _draw_held_out(self, images: Sequence[CaptionedImage], count: int, seed: int) -> list[CaptionedImage]:
        return [images[position] for position in permutation((seed, "held-out"), len(images))[:count].tolist()]

    def batch(self, count: int, iteration: int, seed: int) -> CaptionedImages:
        """Return ``count`` images of one size and their prompts.

        Each image comes once an epoch. A share ``caption_dropout`` of the prompts is empty.
        """
        bucket, earlier = draw_bucket((seed, "buckets"), [len(images) for _, images in self._buckets], iteration)
        size, bucket_images = self._buckets[bucket]
        positions = epoch_order((seed, "batch", *size), len(bucket_images), earlier * count, count)
        images = [bucket_images[position] for position in positions]
        key = (seed, iteration, "batch")
        empty = (uniform((*key, "dropout"), count) < self.caption_dropout).tolist()
        prompts = [
            Prompt("") if is_empty else self.prompt(image, random.Random(seed_of(*key, row)))
            for row, (image, is_empty) in enumerate(zip(images, empty, strict=True))
        ]
        return CaptionedImages(prompts, lambda rows: self._load(images[rows], size))

    def held_out_images(self, count: int, seed: int) -> CaptionedImages:
        """Return ``count`` held-out images of their most frequent size with captions, or all if there are fewer."""
        size, candidates = max(self.by_size(self._sides[1]).items(), key=lambda pair: len(pair[1]))
        images = self._draw_held_out(candidates, count, seed)
        return CaptionedImages([self.prompt(image) for image in images], lambda rows: self._load(images[rows], size))

    @property
    def _square(self) -> Size:
        return self.resolution, self.resolution

    def _load(self, images: Sequence[CaptionedImage], size: Size) -> Tensor:
        return to_tensor(map_in_threads(lambda image: image.picture(size), images))

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return no measures: only drawn scenes can be checked, so the recipe's rewards are the score."""
        return {}

    def category(self, prompt: Prompt) -> str:
        """Return the prompt's value in column ``report_by`` or "other"; "all" if ``report_by`` is not set."""
        return str(prompt.metadata.get(self.report_by, "other")) if self.report_by else "all"


@dataclass(frozen=True)
class DrawnImages(ImageData):
    """Images of drawn scenes, such as ``grpaint data draw`` writes, on which the checker can measure success.

    Every sidecar needs a ``sentence`` in the grammar of the embedded world.
    """

    resolution: int = SIDE

    score: ClassVar[str] = "strict"
    image_size: ClassVar[tuple[int, int]] = (SIDE, SIDE)

    def measures(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the checker's measures of each image: ``strict``, ``soft``, ``background``, ``patch_energy``."""
        return vars(judge(images, prompts))

    def category(self, prompt: Prompt) -> str:
        """Return the prompt's value in column ``report_by``, or the task kind without such a column."""
        return super().category(prompt) if self.report_by else caption_of(prompt).kind
