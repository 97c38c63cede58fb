"""HPSv2 and 2.1: human preference scores by a CLIP ViT-H/14."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import TransformersReward
from grpaint.rewards.self_test_images import circle_pair
from grpaint.vision.clip import VIT_H, load_tokenizer
from grpaint.vision.open_clip import MAX_TOKENS, load_hps
from grpaint.vision.sources import TOKENIZER_FILES

FILES = {"2": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


@dataclass(frozen=True, kw_only=True)
class Hps(TransformersReward):
    """HPSv2 or 2.1: the cosine by a CLIP ViT-H/14 tuned on people's preferences (Wu et al. 2023), in [-1, 1].

    Pictures are padded to a square, not cropped. Published figures are 100 times as large. Reads 75 tokens of a
    caption.
    """

    version: Literal["2", "2.1"] = "2.1"
    weights: str = "xswu/HPSv2"
    tokenizer: str = VIT_H

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, (FILES[self.version],), "xswu/HPSv2"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER_FILES, VIT_H),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        file, tokenizer = self.files()
        clip = load_hps(file, tokenizer.parent, str(images.device), self.precision)
        return clip.cosine(images, [prompt.text for prompt in prompts])

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        tokenizer = self.files()[1].parent
        return load_tokenizer(tokenizer, MAX_TOKENS).count_too_long([prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return circle_pair(0, 0.5)
