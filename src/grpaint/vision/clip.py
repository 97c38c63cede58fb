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
from grpaint.core.text import one_line
from grpaint.storage.files import read_weights
from grpaint.vision.pixels import Pixels, crop_to_square, normalise
from grpaint.vision.pretrained import Tokenizer, build_config, build_network
from grpaint.vision.sources import read_config

VIT_L = "openai/clip-vit-large-patch14"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

Fit = Callable[[Pixels, int], Pixels]


class ClipImages:
    """The image tower of a CLIP; ``fit`` crops or pads images to the square that the network reads."""

    def __init__(self, model: Any, fit: Fit = crop_to_square) -> None:
        self.model, self.fit = model, fit

    def image_embedding(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """The projected embedding of images in [0, 1] of any size, fp32; not scaled to length 1."""
        weight = self.model.visual_projection.weight
        side = self.model.config.vision_config.image_size
        pixels = normalise(self.fit(images.to(weight.device), side)).to(weight.dtype)
        return self.model.get_image_features(pixel_values=pixels).pooler_output.float()

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """The image embedding scaled to length 1."""
        return F.normalize(self.image_embedding(images), dim=1)


class Clip(ClipImages):
    """A whole CLIP: image tower, text tower and tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer, fit: Fit = crop_to_square) -> None:
        super().__init__(model, fit)
        self.tokenizer = tokenizer

    @property
    def scale(self) -> float:
        """The learned factor of the cosine, exp(logit_scale)."""
        return float(self.model.logit_scale.float().exp())

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """The projected text embedding scaled to length 1, fp32; equal captions are computed once."""
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
def load_tokenizer(folder: Path, length: int) -> Tokenizer:
    """Open the tokenizer in a folder, once for each length."""
    return Tokenizer(folder, length)


def load_clip(file: Path, tokenizer: Path, device: str, precision: NetworkPrecision) -> Clip:
    """Open a CLIP from its weight file, with ``config.json`` in the same folder, and its tokenizer's folder.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another architecture.
    """
    model: Any = load_clip_network(file, device, precision)
    return Clip(model, load_tokenizer(tokenizer, model.config.text_config.max_position_embeddings))


@functools.cache
def load_clip_network(file: Path, device: str, precision: NetworkPrecision) -> nn.Module:
    """Open CLIP's two towers without a tokenizer, once for each file, device and precision.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another architecture.
    """
    stored, _ = read_weights(file)
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(".position_ids")}  # in old files
    settings = read_config(file)
    try:
        config = build_config("CLIPConfig", **settings)
    except Exception as error:  # transformers raises errors of several kinds for an impossible config.json
        raise CheckpointError(f"{file}: not a CLIP model ({one_line(str(error), 160)}).") from error
    return to_device(build_network("CLIPModel", config, tensors, file), device, precision)


def to_device(module: nn.Module, device: str, precision: NetworkPrecision) -> nn.Module:
    """Move a network to a device and a precision."""
    return module.to(device, DTYPES[precision])
