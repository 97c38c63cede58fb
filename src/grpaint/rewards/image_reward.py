"""ImageReward: BLIP reads caption and picture together, a linear head scores what it read."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.clip import drawn_pair, moved, tokenizer_of
from grpaint.rewards.model import Precision, TransformersReward
from grpaint.storage.files import read_torch
from grpaint.vision.blip import text_tower, vision_tower
from grpaint.vision.heads import LinearHead
from grpaint.vision.pixels import cut, normalised
from grpaint.vision.pretrained import Tokenizer
from grpaint.vision.sources import TOKENIZER

LENGTH = 35  # tokens
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # of BLIP's own training; its authors do not read them either
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its scores on its authors' data


class ImageTextScore:
    """The towers, the head and the tokenizer."""

    def __init__(self, vision: Any, text: Any, head: LinearHead, words: Tokenizer) -> None:
        self.vision, self.text, self.head, self.words = vision, text, head, words

    def __call__(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1] of any size."""
        weight = self.vision.embeddings.patch_embedding.weight
        pixels = normalised(cut(images, self.vision.config.image_size, nearest=True)).to(weight.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        ids, mask = (part.to(weight.device) for part in self.words(texts))
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return (self.head(read[:, 0]) - MEAN) / STD


@functools.cache
def load_image_reward(file: Path, tokenizer: Path, device: str, precision: Precision) -> ImageTextScore:
    """ImageReward's network from its own file; opened once for each device and precision.

    Raises:
        CheckpointError: where the file is damaged or of another architecture.
    """
    stored = read_torch(file)
    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
    for name, tensor in stored.items():
        if name.startswith(UNUSED):
            continue
        place = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if place is None:
            raise CheckpointError(f"{file}: not a file of ImageReward: it has {name}, which no part of it knows.")
        parts[place][name.removeprefix(place)] = tensor
    seeing, reading, scoring = parts.values()
    try:
        vision, text = vision_tower(seeing, file), text_tower(reading, file)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: not a file of ImageReward: {error} is missing.") from error
    head = LinearHead(scoring, file)
    vision, text = (moved(tower, device, precision) for tower in (vision, text))
    return ImageTextScore(vision, text, head, tokenizer_of(tokenizer, LENGTH))


@dataclass(frozen=True, kw_only=True)
class ImageReward(TransformersReward):
    """ImageReward: how well people would like a picture for its caption (Xu et al. 2023); 0 is middling, std 1.

    Reads 33 tokens. ``tokenizer`` is that of BERT, lower case.
    """

    weights: str = "THUDM/ImageReward"
    tokenizer: str = "google-bert/bert-base-uncased"

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, ("ImageReward.pt",), "THUDM/ImageReward"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER, "google-bert/bert-base-uncased"),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        file, tokenizer = self.files()
        network = load_image_reward(file, tokenizer.parent, str(images.device), self.precision)
        return network(images, [prompt.text for prompt in prompts])

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        tokenizer = self.files()[1].parent
        return tokenizer_of(tokenizer, LENGTH).too_long([prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return drawn_pair(-4, 4)
