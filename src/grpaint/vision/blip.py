"""BLIP's vision and text towers with the weights of ImageReward's file, as networks of transformers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grpaint.vision.pretrained import build_config, build_network

HEAD_WIDTH = 64  # in both towers; the number of attention heads cannot be read from the tensors' shapes

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


def rename_vision_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of BLIP's vision transformer to transformers' names."""
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
    """Build the vision transformer; its sizes are read from the tensors' shapes."""
    tensors = rename_vision_tensors(stored)
    hidden, width = tensors["encoder.layers.0.mlp.fc1.weight"].shape
    patch = tensors["embeddings.patch_embedding.weight"].shape[-1]
    positions = tensors["embeddings.position_embedding"].shape[1] - 1
    config = build_config(
        "BlipVisionConfig",
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=_count_layers(tensors),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        patch_size=patch,
        image_size=patch * round(positions**0.5),
        layer_norm_eps=1e-6,
    )
    return build_network("BlipVisionModel", config, tensors, file)


def text_tower(stored: Mapping[str, Tensor], file: Path) -> Any:
    """Build the text transformer with cross-attention to an image; its sizes are read from the tensors' shapes."""
    tensors = {name: tensor for name, tensor in stored.items() if name != "embeddings.position_ids"}
    hidden, width = tensors["encoder.layer.0.intermediate.dense.weight"].shape
    vocabulary, _ = tensors["embeddings.word_embeddings.weight"].shape
    config = build_config(
        "BlipTextConfig",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        num_hidden_layers=_count_layers(tensors),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # only a decoder has cross-attention to an image
        bos_token_id=0,
        sep_token_id=0,
        eos_token_id=0,
    )
    return build_network("BlipTextModel", config, tensors, file, add_pooling_layer=False)


def _count_layers(tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer")})
