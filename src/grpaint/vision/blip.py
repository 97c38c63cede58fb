"""BLIP's vision and text towers from ImageReward's file, in transformers' networks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grpaint.vision.pretrained import configuration, network

HEAD_WIDTH = 64  # of both towers; a file does not say how many heads share a matrix

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}


def vision_names(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of BLIP's vision transformer by transformers' names."""
    out = {}
    for name, tensor in stored.items():
        stem, _, last = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        if name in _VISION:
            out[_VISION[name]] = tensor
        elif block:
            out[f"encoder.layers.{block[1]}.{_IN_BLOCK.get(block[2], block[2])}.{last}"] = tensor
        else:
            out[f"{_VISION.get(stem, stem)}.{last}"] = tensor
    return out


def vision_tower(stored: Mapping[str, Tensor], file: Path) -> nn.Module:
    """The vision transformer; its sizes are those of its tensors."""
    tensors = vision_names(stored)
    hidden, width = tensors["encoder.layers.0.mlp.fc1.weight"].shape
    patch = tensors["embeddings.patch_embedding.weight"].shape[-1]
    places = tensors["embeddings.position_embedding"].shape[1] - 1
    config = configuration(
        "BlipVisionConfig",
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=_layers(tensors),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        patch_size=patch,
        image_size=patch * round(places**0.5),
        layer_norm_eps=1e-6,
    )
    return network("BlipVisionModel", config, tensors, file)


def text_tower(stored: Mapping[str, Tensor], file: Path) -> Any:
    """The text transformer that looks at an image; its sizes are those of its tensors."""
    tensors = {name: tensor for name, tensor in stored.items() if name != "embeddings.position_ids"}
    hidden, width = tensors["encoder.layer.0.intermediate.dense.weight"].shape
    words, _ = tensors["embeddings.word_embeddings.weight"].shape
    config = configuration(
        "BlipTextConfig",
        vocab_size=words,
        hidden_size=width,
        intermediate_size=hidden,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        num_hidden_layers=_layers(tensors),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # what gives it attention to an image
        bos_token_id=0,
        sep_token_id=0,
        eos_token_id=0,
    )
    return network("BlipTextModel", config, tensors, file, add_pooling_layer=False)


def _layers(tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer")})
