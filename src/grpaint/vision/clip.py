"""CLIP in transformers' layout: image and text embeddings, and the cosine between them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import DTYPES, NetworkPrecision
from grpaint.storage.files import read_weights
from grpaint.vision.pixels import Pixels, cut, normalised
from grpaint.vision.pretrained import Tokenizer, configuration, network
from grpaint.vision.sources import settings_beside

VIT_L = "openai/clip-vit-large-patch14"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

Fit = Callable[[Pixels, int], Pixels]


class ClipImages:
    """The image side of a CLIP; ``fit`` brings images to a square of the side that the network reads."""

    def __init__(self, model: Any, fit: Fit = cut) -> None:
        self.model, self.fit = model, fit

    def image_embedding(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """The projected embedding of images in [0, 1] of any size, in fp32; not scaled to length 1."""
        weight = self.model.visual_projection.weight
        side = self.model.config.vision_config.image_size
        pixels = normalised(self.fit(images.to(weight.device), side)).to(weight.dtype)
        return self.model.get_image_features(pixel_values=pixels).pooler_output.float()

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """The embedding scaled to length 1."""
        return F.normalize(self.image_embedding(images), dim=1)


class Clip(ClipImages):
    """A whole CLIP: the image side, the text side and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer, fit: Fit = cut) -> None:
        super().__init__(model, fit)
        self.tokenizer = tokenizer

    @property
    def scale(self) -> float:
        """The learned factor of its cosines, exp(logit_scale)."""
        return float(self.model.logit_scale.float().exp())

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Text embeddings of length 1, in fp32; equal captions are computed once."""
        unique = list(dict.fromkeys(texts))
        device = self.model.text_projection.weight.device
        ids, mask = (part.to(device) for part in self.tokenizer(unique))
        embeddings = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        rows = torch.tensor([unique.index(text) for text in texts], device=device)
        return F.normalize(embeddings.float(), dim=1)[rows]

    def cosine(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """The cosine between each image and its own caption, in [-1, 1]."""
        return (self.image_features(images) * self.text_features(texts)).sum(1)


@functools.cache
def tokenizer_of(folder: Path, length: int) -> Tokenizer:
    """The tokenizer in a folder, opened once."""
    return Tokenizer(folder, length)


def load_clip(file: Path, tokenizer: Path, device: str, precision: NetworkPrecision) -> Clip:
    """A CLIP from its weight file, with ``config.json`` beside it, and the folder of its tokenizer.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another architecture.
    """
    model: Any = load_clip_network(file, device, precision)
    return Clip(model, tokenizer_of(tokenizer, model.config.text_config.max_position_embeddings))


@functools.cache
def load_clip_network(file: Path, device: str, precision: NetworkPrecision) -> nn.Module:
    """CLIP's two towers without a tokenizer; opened once for each file, device and precision.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another architecture.
    """
    stored, _ = read_weights(file)
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(".position_ids")}  # in old files
    settings = settings_beside(file)
    try:
        config = configuration("CLIPConfig", **settings)
    except Exception as error:  # transformers raises errors of several kinds for an impossible config.json
        raise CheckpointError(f"{file}: not a CLIP model ({' '.join(str(error).split())[:160]}).") from error
    return placed(network("CLIPModel", config, tensors, file), device, precision)


def placed(module: nn.Module, device: str, precision: NetworkPrecision) -> nn.Module:
    """Move a network to its device and precision."""
    return module.to(device, DTYPES[precision])
