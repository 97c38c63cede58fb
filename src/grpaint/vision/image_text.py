"""The network of ImageReward: BLIP encodes image and caption together, and a linear head maps that to a score."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import NetworkPrecision
from grpaint.storage.files import read_torch
from grpaint.vision.blip import text_tower, vision_tower
from grpaint.vision.clip import load_tokenizer, to_device
from grpaint.vision.heads import LinearHead
from grpaint.vision.pixels import crop_to_square, normalise
from grpaint.vision.pretrained import Tokenizer

MAX_TOKENS = 35  # of a caption, with its start and end
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # only BLIP's pretraining uses these tensors
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores on its authors' data


class ImageTextScorer:
    """The vision tower, the text tower, the linear head and the tokenizer."""

    def __init__(self, vision: Any, text: Any, head: LinearHead, tokenizer: Tokenizer) -> None:
        self.vision, self.text, self.head, self.tokenizer = vision, text, head, tokenizer

    def __call__(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Standardised scores of images in [0, 1] of any size, each with its own caption."""
        weight = self.vision.embeddings.patch_embedding.weight
        pixels = normalise(crop_to_square(images, self.vision.config.image_size, nearest=True)).to(weight.dtype)
        image_tokens = self.vision(pixel_values=pixels).last_hidden_state
        ids, mask = (part.to(weight.device) for part in self.tokenizer(texts))
        joint = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=image_tokens).last_hidden_state
        return (self.head(joint[:, 0]) - MEAN) / STD


@functools.cache
def load_image_reward(file: Path, tokenizer: Path, device: str, precision: NetworkPrecision) -> ImageTextScorer:
    """Open ImageReward's network from its published file, once for each device and precision.

    Raises:
        CheckpointError: if the file is damaged or of another architecture.
    """
    stored = read_torch(file)
    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
    for name, tensor in stored.items():
        if name.startswith(UNUSED):
            continue
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            raise CheckpointError(
                f"{file}: not a file of ImageReward: it contains {name}, which belongs to no part of the network."
            )
        parts[prefix][name.removeprefix(prefix)] = tensor
    vision_tensors, text_tensors, head_tensors = parts.values()
    try:
        vision, text = vision_tower(vision_tensors, file), text_tower(text_tensors, file)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: not a file of ImageReward: {error} is missing.") from error
    head = LinearHead(head_tensors, file)
    vision, text = (to_device(tower, device, precision) for tower in (vision, text))
    return ImageTextScorer(vision, text, head, load_tokenizer(tokenizer, MAX_TOKENS))
