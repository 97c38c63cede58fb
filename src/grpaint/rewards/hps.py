"""HPSv2 and 2.1: human preference scores by a CLIP ViT-H/14 whose file has open_clip's names."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.clip import VIT_H, Clip, drawn_pair, moved, tokenizer_of
from grpaint.rewards.model import Precision, TransformersReward
from grpaint.storage.files import read_torch
from grpaint.vision.pixels import padded
from grpaint.vision.pretrained import configuration, network
from grpaint.vision.sources import TOKENIZER

FILES = {"2": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
HEAD_WIDTH = {"text_model": 64, "vision_model": 80}  # of ViT-H/14; a file does not say how many heads share a matrix
LENGTH = 77

_WHOLE = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",  # theirs multiplies from the right
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors by transformers' names; a name that open_clip has not keeps its own."""
    out: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stem, _, last = name.rpartition(".")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            out |= _block(f"{tower}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in _WHOLE:
            turned = name in ("text_projection", "visual.proj")
            out[_WHOLE[name]] = tensor.T.contiguous() if turned else tensor
        else:
            out[f"{_WHOLE.get(stem, stem)}.{last}"] = tensor
    return out


def _block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a transformer block; the three matrices of attention are one in open_clip."""
    fused = re.fullmatch(r"attn\.in_proj_(weight|bias)", name)
    if fused:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{fused[1]}": part.contiguous() for letter, part in parts}
    stem, _, last = name.rpartition(".")
    return {f"{prefix}.{_IN_BLOCK.get(stem, stem)}.{last}": tensor}


def _tower(tensors: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    """The settings of a tower, read from the shapes of its tensors."""
    hidden, width = tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in tensors if name.startswith(f"{tower}.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH[tower]),
        "hidden_act": "gelu",
    }


def _configuration(tensors: Mapping[str, Tensor], end: int) -> Any:
    words, _ = tensors["text_model.embeddings.token_embedding.weight"].shape
    patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    places = tensors["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
    text = {"vocab_size": words, "max_position_embeddings": length, "eos_token_id": end, "bos_token_id": end - 1}
    return configuration(
        "CLIPConfig",
        projection_dim=tensors["text_projection.weight"].shape[0],
        text_config=_tower(tensors, "text_model") | text,
        vision_config=_tower(tensors, "vision_model") | {"patch_size": patch, "image_size": patch * round(places**0.5)},
    )


@functools.cache
def load_hps(file: Path, tokenizer: Path, device: str, precision: Precision) -> Clip:
    """HPSv2's network from its own file; opened once for each device and precision.

    Raises:
        CheckpointError: where the file is damaged or of another architecture.
    """
    stored = read_torch(file)
    words = tokenizer_of(tokenizer, LENGTH)
    try:
        tensors = from_open_clip(stored["state_dict"])
        config = _configuration(tensors, words.end)
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a file of HPSv2: {error} is missing under state_dict.") from error
    return Clip(moved(network("CLIPModel", config, tensors, file), device, precision), words, padded)


@dataclass(frozen=True, kw_only=True)
class Hps(TransformersReward):
    """HPSv2 or 2.1: the cosine by a CLIP ViT-H/14 tuned on people's preferences (Wu et al. 2023), in [-1, 1].

    Pictures are padded to a square, not cut. Published figures are 100 times these. Reads 75 tokens.
    """

    version: Literal["2", "2.1"] = "2.1"
    weights: str = "xswu/HPSv2"
    tokenizer: str = VIT_H

    def sources(self) -> tuple[WeightSource, ...]:
        return (
            WeightSource("weights", self.weights, (FILES[self.version],), "xswu/HPSv2"),
            WeightSource("tokenizer", self.tokenizer, TOKENIZER, VIT_H),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        file, tokenizer = self.files()
        clip = load_hps(file, tokenizer.parent, str(images.device), self.precision)
        return clip.cosine(images, [prompt.text for prompt in prompts])

    def truncated(self, prompts: Sequence[Prompt]) -> int:
        tokenizer = self.files()[1].parent
        return tokenizer_of(tokenizer, LENGTH).too_long([prompt.text for prompt in prompts])

    def pair(self) -> Pair:
        return drawn_pair(0, 0.5)
