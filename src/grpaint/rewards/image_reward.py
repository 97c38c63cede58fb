"""ImageReward: how well people would like a picture for its caption."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import TransformersReward
from grpaint.rewards.self_test_images import circle_pair
from grpaint.vision.clip import load_tokenizer
from grpaint.vision.image_text import MAX_TOKENS, load_image_reward
from grpaint.vision.sources import TOKENIZER_FILES


@dataclass(frozen=True, kw_only=True)
class ImageReward(TransformersReward):
    """ImageReward (Xu et al. 2023): predicted human preference; mean 0 and std 1 on its training data.

    Reads 35 tokens, start and end included, so 33 of the caption. ``tokenizer`` is that of bert-base-uncased.
    """

    weights: str = "THUDM/ImageReward"
    tokenizer: str = "google-bert/bert-base-uncased"

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, ("ImageReward.pt",), "THUDM/ImageReward"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER_FILES, "google-bert/bert-base-uncased"),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        file, tokenizer = self.files()
        network = load_image_reward(file, tokenizer.parent, str(images.device), self.precision)
        return network(images, [prompt.text for prompt in prompts])

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        tokenizer = self.files()[1].parent
        return load_tokenizer(tokenizer, MAX_TOKENS).count_too_long([prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return circle_pair(-4, 4)
