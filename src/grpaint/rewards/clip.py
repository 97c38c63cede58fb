"""CLIP and the rewards that read it: CLIP-Score and PickScore. One network serves all that name the same files."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import DTYPES, Precision, TransformersReward
from grpaint.rewards.self_test_images import circle, noise
from grpaint.storage.files import read_weights
from grpaint.vision.pixels import Pixels, cut, normalised
from grpaint.vision.pretrained import Tokenizer, configuration, network
from grpaint.vision.sources import MODEL, TOKENIZER, settings_beside

VIT_L = "openai/clip-vit-large-patch14"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Clip:
    """A CLIP, its tokenizer, and how it wants its pictures: ``fit`` brings images to a square of the side it reads."""

    def __init__(self, model: Any, tokenizer: Tokenizer, fit: Callable[[Pixels, int], Pixels] = cut) -> None:
        self.model, self.tokenizer, self.fit = model, tokenizer, fit

    @property
    def scale(self) -> float:
        """The learned factor of its cosines, exp(logit_scale)."""
        return float(self.model.logit_scale.float().exp())

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Of length 1, fp32; images in [0, 1] of any size."""
        weight = self.model.visual_projection.weight
        side = self.model.config.vision_config.image_size
        pixels = normalised(self.fit(images.to(weight.device), side)).to(weight.dtype)
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=1)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Of length 1, fp32; equal captions are read once."""
        unique = list(dict.fromkeys(texts))
        device = self.model.text_projection.weight.device
        ids, mask = (part.to(device) for part in self.tokenizer(unique))
        found = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        rows = torch.tensor([unique.index(text) for text in texts], device=device)
        return F.normalize(found.float(), dim=1)[rows]

    def cosine(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Between each image and its own caption, in [-1, 1]."""
        return (self.image_features(images) * self.text_features(texts)).sum(1)


@functools.cache
def tokenizer_of(folder: Path, length: int) -> Tokenizer:
    """A tokenizer, opened once."""
    return Tokenizer(folder, length)


@functools.cache
def load_clip(file: Path, tokenizer: Path, device: str, precision: Precision) -> Clip:
    """A CLIP in transformers' layout, ``config.json`` beside its weights; opened once for each device and precision.

    Raises:
        CheckpointError: where a file is missing, damaged, or of another architecture.
    """
    stored, _ = read_weights(file)
    config = configuration("CLIPConfig", **settings_beside(file))
    words = tokenizer_of(tokenizer, config.text_config.max_position_embeddings)
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(".position_ids")}  # of old files
    return Clip(moved(network("CLIPModel", config, tensors, file), device, precision), words)


def moved(module: nn.Module, device: str, precision: Precision) -> nn.Module:
    """A network where it computes, in what it computes."""
    return module.to(device, DTYPES[precision])


def drawn_pair(low: float, high: float) -> Pair:
    """A drawing of what the caption says, and noise."""
    return Pair(circle(), noise(), Prompt("a red circle on a white background"), low, high)


@dataclass(frozen=True, kw_only=True)
class ClipReward(TransformersReward):
    """A scorer that is a CLIP in transformers' layout, with its tokenizer."""

    weights: str = VIT_L
    tokenizer: str = VIT_L

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, MODEL, VIT_L),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER, VIT_L),
        )

    def clip(self, device: torch.device) -> Clip:
        """The network on a device."""
        file, tokenizer = self.files()
        return load_clip(file, tokenizer.parent, str(device), self.precision)

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        file, tokenizer = self.files()
        length = configuration("CLIPConfig", **settings_beside(file)).text_config.max_position_embeddings
        return tokenizer_of(tokenizer.parent, length).too_long([prompt.text for prompt in prompts])


@dataclass(frozen=True, kw_only=True)
class ClipScore(ClipReward):
    """CLIP-Score: 100 x the cosine of image and caption by OpenAI's CLIP ViT-L/14 (Hessel et al. 2021).

    Theirs also cuts below 0, which pictures hardly reach and which would leave a group flat. Reads 75 tokens.
    """

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return 100 * self.clip(images.device).cosine(images, [prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return drawn_pair(0, 50)


@dataclass(frozen=True, kw_only=True)
class PickScore(ClipReward):
    """PickScore: exp(logit_scale) x the cosine by a CLIP ViT-H/14 tuned on people's choices (Kirstain et al. 2023).

    Reads 75 tokens.
    """

    weights: str = "yuvalkirstain/PickScore_v1"
    tokenizer: str = VIT_H

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, MODEL, "yuvalkirstain/PickScore_v1"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER, VIT_H),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        clip = self.clip(images.device)
        return clip.scale * clip.cosine(images, [prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return drawn_pair(0, 50)
