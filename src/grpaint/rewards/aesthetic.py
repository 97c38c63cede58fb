"""The LAION improved aesthetic predictor: a linear head on a CLIP embedding."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import TransformersReward
from grpaint.rewards.self_test_images import noise, sunset
from grpaint.storage.files import read_torch
from grpaint.vision.clip import VIT_L, ClipImages, load_clip_network
from grpaint.vision.heads import LinearHead
from grpaint.vision.sources import MODEL_FILES, TOKENIZER_FILES

HEAD = "trl-lib/ddpo-aesthetic-predictor"


@functools.cache
def load_head(file: Path) -> LinearHead:
    """Open the predictor's linear layers, once for each file."""
    return LinearHead(read_torch(file), file)


@dataclass(frozen=True, kw_only=True)
class Aesthetic(TransformersReward):
    """How much people would like a picture, about 1 to 10, by LAION's improved aesthetic predictor; reads no caption.

    ``weights`` is its head (``aesthetic-model.pth``, the same file as ``sac+logos+ava1-l14-linearMSE.pth``), ``clip``
    the CLIP ViT-L/14 whose embedding it reads; clip-score shares that network.
    """

    needs_caption = False

    weights: str = HEAD
    clip: str = VIT_L

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, ("aesthetic-model.pth",), HEAD),
            WeightSource("clip", self.clip, (*MODEL_FILES, *TOKENIZER_FILES), VIT_L),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        head, file = self.files()
        clip = ClipImages(load_clip_network(file, str(images.device), self.precision))
        return load_head(head)(clip.image_features(images))

    def pair(self) -> Pair:
        return Pair(sunset(), noise(), Prompt(""), 0, 10)
