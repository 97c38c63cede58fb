"""SDXL-type pipelines with random weights, built from sizes alone: for the offline demo, and for speed and memory.

They spell captions out letter by letter, but for the words that they are given, which are a token each.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import MissingExtra


@dataclass(frozen=True)
class Size:
    """Of an SDXL-type pipeline: ``pixels`` a side, VAE and U-Net widths by level, and the encoders' width."""

    pixels: int
    vae: tuple[int, ...]
    unet: tuple[int, ...]
    layers: int
    depths: tuple[Any, ...]  # transformer layers by level, 0 for none
    up_depths: tuple[Any, ...] | None  # where they differ on the way up
    middle: bool  # attention in the middle block
    text: int
    text_layers: int
    tokens: int


SIZES = {
    "demo": Size(32, (32, 64, 64), (64, 128), 2, (1, 1), None, True, 64, 2, 16),
    "ssd-1b": Size(
        1024,
        (128, 256, 512, 512),
        (320, 640, 1280),
        2,
        (0, (2, 2), (4, 4)),
        ((4, 4, 10), (2, 1, 1), 0),
        False,
        1024,
        32,
        77,
    ),
    "sdxl": Size(1024, (128, 256, 512, 512), (320, 640, 1280), 2, (0, 2, 10), None, True, 1024, 32, 77),
}
HEAD = 64  # channels of an attention head, at most


def sdxl(size: Size, words: Sequence[str] = (), seed: int = 0, device: str = "cpu") -> Any:
    """A ``StableDiffusionXLPipeline``; on the device "meta" it has shapes alone.

    Raises:
        MissingExtra: without diffusers and transformers.
    """
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise MissingExtra("A diffusers model", "diffusers") from error
    torch.manual_seed(seed)
    levels = [("CrossAttnDownBlock2D" if depth else "DownBlock2D") for depth in size.depths]
    depths: dict[str, Any] = {"transformer_layers_per_block": [depth or 1 for depth in size.depths]}
    if size.up_depths:
        depths["reverse_transformer_layers_per_block"] = [
            list(depth) if isinstance(depth, tuple) else 1 for depth in size.up_depths
        ]
        depths["transformer_layers_per_block"] = [
            list(depth) if isinstance(depth, tuple) else 1 for depth in size.depths
        ]
    unet = partial(
        diffusers.UNet2DConditionModel,
        sample_size=size.pixels // 2 ** (len(size.vae) - 1),
        block_out_channels=size.unet,
        layers_per_block=size.layers,
        down_block_types=tuple(levels),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(levels)),
        mid_block_type="UNetMidBlock2DCrossAttn" if size.middle else "UNetMidBlock2D",
        cross_attention_dim=2 * size.text,
        attention_head_dim=[max(1, width // HEAD) for width in size.unet],
        norm_num_groups=min(32, size.unet[0] // 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=size.text + 6 * 32,
        **depths,
    )
    vae = partial(
        diffusers.AutoencoderKL,
        block_out_channels=size.vae,
        down_block_types=("DownEncoderBlock2D",) * len(size.vae),
        up_block_types=("UpDecoderBlock2D",) * len(size.vae),
        layers_per_block=2 if size.pixels > 64 else 1,
        norm_num_groups=min(32, size.vae[0] // 4),
        sample_size=size.pixels,
        scaling_factor=0.13025 if size.pixels > 64 else 1.0,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizers = [
        transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=size.tokens) for _ in range(2)
    ]
    for tokenizer in tokenizers:
        tokenizer.add_tokens([transformers.AddedToken(word, single_word=True) for word in words])
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizers[0]),
        hidden_size=size.text,
        intermediate_size=4 * size.text,
        projection_dim=size.text,
        num_hidden_layers=size.text_layers,
        num_attention_heads=max(1, size.text // HEAD),
        max_position_embeddings=size.tokens,
        bos_token_id=len(pieces),
        eos_token_id=len(pieces) + 1,
        pad_token_id=len(pieces) + 1,
    )
    with torch.device(device):
        parts = {
            "unet": unet(),
            "vae": vae(),
            "text_encoder": transformers.CLIPTextModel(config),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(config),
        }
    for part in parts.values():
        part.eval()
    return diffusers.StableDiffusionXLPipeline(
        **parts,
        scheduler=scheduler,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        add_watermarker=False,
    )


def save(name: str, folder: Path, words: Sequence[str] = (), seed: int = 0) -> Path:
    """The pipeline of :data:`SIZES` by this name, in a folder."""
    sdxl(SIZES[name], words, seed).save_pretrained(folder)
    return folder
