"""CLIP ViT-H/14 from a file with open_clip's names (such as HPSv2's), as a network of transformers."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import NetworkPrecision
from grpaint.storage.files import read_torch
from grpaint.vision.clip import Clip, load_tokenizer, to_device
from grpaint.vision.pixels import pad_to_square
from grpaint.vision.pretrained import build_config, build_network

HEAD_WIDTH = {"text_model": 64, "vision_model": 80}  # of ViT-H/14; the tensors' shapes do not give it
MAX_TOKENS = 77

_WHOLE = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",  # transposed in open_clip
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
    """Rename open_clip's tensors to transformers' names; names that open_clip does not have stay."""
    out: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        stem, _, last = name.rpartition(".")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            out |= _block(f"{tower}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in _WHOLE:
            transposed = name in ("text_projection", "visual.proj")
            out[_WHOLE[name]] = tensor.T.contiguous() if transposed else tensor
        else:
            out[f"{_WHOLE.get(stem, stem)}.{last}"] = tensor
    return out


def _block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Rename a tensor of a transformer block; open_clip stores query, key and value as one matrix."""
    stacked = re.fullmatch(r"attn\.in_proj_(weight|bias)", name)
    if stacked:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{stacked[1]}": part.contiguous() for letter, part in parts}
    stem, _, last = name.rpartition(".")
    return {f"{prefix}.{_IN_BLOCK.get(stem, stem)}.{last}": tensor}


def _tower_settings(tensors: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    """The settings of a tower, read from its tensors' shapes."""
    hidden, width = tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in tensors if name.startswith(f"{tower}.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH[tower]),
        "hidden_act": "gelu",
    }


def _config(tensors: Mapping[str, Tensor], end_token: int) -> Any:
    vocabulary, _ = tensors["text_model.embeddings.token_embedding.weight"].shape
    patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    positions = tensors["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
    text = {"vocab_size": vocabulary, "max_position_embeddings": length}
    text |= {"eos_token_id": end_token, "bos_token_id": end_token - 1}
    vision = {"patch_size": patch, "image_size": patch * round(positions**0.5)}
    return build_config(
        "CLIPConfig",
        projection_dim=tensors["text_projection.weight"].shape[0],
        text_config=_tower_settings(tensors, "text_model") | text,
        vision_config=_tower_settings(tensors, "vision_model") | vision,
    )


@functools.cache
def load_hps(file: Path, tokenizer: Path, device: str, precision: NetworkPrecision) -> Clip:
    """Open HPSv2's network from its published file, once for each device and precision.

    Raises:
        CheckpointError: if the file is damaged or of another architecture.
    """
    stored = read_torch(file)
    encoder = load_tokenizer(tokenizer, MAX_TOKENS)
    try:
        tensors = from_open_clip(stored["state_dict"])
        config = _config(tensors, encoder.end_token)
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a file of HPSv2: {error} is missing under state_dict.") from error
    model = to_device(build_network("CLIPModel", config, tensors, file), device, precision)
    return Clip(model, encoder, pad_to_square)
