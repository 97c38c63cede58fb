"""CLIP-Score and PickScore. Rewards that name the same weights share one network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import TransformersReward
from grpaint.rewards.self_test_images import circle_pair
from grpaint.vision.clip import VIT_H, VIT_L, Clip, load_clip, load_tokenizer
from grpaint.vision.pretrained import build_config
from grpaint.vision.sources import MODEL_FILES, TOKENIZER_FILES, read_config


@dataclass(frozen=True, kw_only=True)
class ClipReward(TransformersReward):
    """Base of the rewards that need only a CLIP in transformers' layout and its tokenizer."""

    weights: str = VIT_L
    tokenizer: str = VIT_L

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, MODEL_FILES, VIT_L),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER_FILES, VIT_L),
        )

    def clip(self, device: torch.device) -> Clip:
        """The network on a device, with its tokenizer."""
        file, tokenizer = self.files()
        return load_clip(file, tokenizer.parent, str(device), self.precision)

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        file, tokenizer = self.files()
        length = build_config("CLIPConfig", **read_config(file)).text_config.max_position_embeddings
        return load_tokenizer(tokenizer.parent, length).count_too_long([prompt.text for prompt in prompts])


@dataclass(frozen=True, kw_only=True)
class ClipScore(ClipReward):
    """CLIP-Score: 100 x the cosine of image and caption by OpenAI's CLIP ViT-L/14 (Hessel et al. 2021).

    The published score is clamped at 0. This one is not: pictures hardly fall below it, and a group at 0 would have no
    spread. Reads 75 tokens.
    """

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        return 100 * self.clip(images.device).cosine(images, [prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return circle_pair(0, 50)


@dataclass(frozen=True, kw_only=True)
class PickScore(ClipReward):
    """PickScore: exp(logit_scale) x the cosine by a CLIP ViT-H/14 tuned on people's preferences (Kirstain et al. 2023).

    Reads 75 tokens.
    """

    weights: str = "yuvalkirstain/PickScore_v1"
    tokenizer: str = VIT_H

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, MODEL_FILES, "yuvalkirstain/PickScore_v1"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER_FILES, VIT_H),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        clip = self.clip(images.device)
        return clip.scale * clip.cosine(images, [prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return circle_pair(0, 50)
