"""Pipelines with random weights, built from sizes alone: for the offline demo and for measuring speed and memory.

Their tokenizers have a token for each letter, and one for each of the ``words`` that they are built with.
"""

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpaint.backends.synthetic.sizes import HEAD, SIZES, ClipSize, FluxSize, Sd3Size, SdxlSize, T5Size, VaeSize
from grpaint.core.errors import MissingExtra

PIECES = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
MARKS = ["<|startoftext|>", "<|endoftext|>"]


def pipeline(size: SdxlSize | Sd3Size | FluxSize, words: Sequence[str] = (), seed: int = 0, device: str = "cpu") -> Any:
    """Build a diffusers pipeline; on the device "meta" it has shapes but no weights.

    Raises:
        MissingExtra: if diffusers and transformers are not installed.
    """
    try:
        import diffusers
        import transformers  # noqa: F401 - reason: without it diffusers has placeholders that fail when used
    except ImportError as error:
        raise MissingExtra("A diffusers model", "diffusers") from error
    torch.manual_seed(seed)
    builders: dict[type, tuple[str, Callable[..., dict[str, Any]]]] = {
        SdxlSize: ("StableDiffusionXLPipeline", _sdxl),
        Sd3Size: ("StableDiffusion3Pipeline", _sd3),
        FluxSize: ("FluxPipeline", _flux),
    }
    name, build_parts = builders[type(size)]
    with torch.device(device):
        parts = build_parts(size, words)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    return getattr(diffusers, name)(**parts, scheduler=_scheduler(size))


def _scheduler(size: SdxlSize | Sd3Size | FluxSize) -> Any:
    import diffusers

    if isinstance(size, SdxlSize):
        return diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
    shifts = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15} if isinstance(size, FluxSize) else {}
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **shifts)


def _sdxl(size: SdxlSize, words: Sequence[str]) -> dict[str, Any]:
    import transformers

    tokenizer = _tokenizer(size.text, words)
    text = _clip_config(size.text, tokenizer)
    return {
        "unet": _unet(size),
        "vae": _vae(size.vae, size.pixels),
        "text_encoder": transformers.CLIPTextModel(text),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(text),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "add_watermarker": False,
    }


def _unet(size: SdxlSize) -> Any:
    import diffusers

    down_blocks = [("CrossAttnDownBlock2D" if depth else "DownBlock2D") for depth in size.depths]
    depths: dict[str, Any] = {"transformer_layers_per_block": [depth or 1 for depth in size.depths]}
    if size.up_depths:
        levels = {"transformer_layers_per_block": size.depths, "reverse_transformer_layers_per_block": size.up_depths}
        depths = {key: [list(d) if isinstance(d, tuple) else 1 for d in values] for key, values in levels.items()}
    return diffusers.UNet2DConditionModel(
        sample_size=size.pixels // 2 ** (len(size.vae.widths) - 1),
        block_out_channels=size.unet,
        layers_per_block=2,
        down_block_types=tuple(down_blocks),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down_blocks)),
        mid_block_type="UNetMidBlock2DCrossAttn" if size.middle else "UNetMidBlock2D",
        cross_attention_dim=2 * size.text.width,
        attention_head_dim=[max(1, width // HEAD) for width in size.unet],
        norm_num_groups=min(32, size.unet[0] // 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=size.text.width + 6 * 32,
        **depths,
    )


def _sd3(size: Sd3Size, words: Sequence[str]) -> dict[str, Any]:
    import diffusers
    import transformers

    tokenizers = [_tokenizer(clip, words) for clip in size.text]
    encoders = [
        transformers.CLIPTextModelWithProjection(_clip_config(clip, tokenizer))
        for clip, tokenizer in zip(size.text, tokenizers, strict=True)
    ]
    width = size.heads * size.head
    side = size.pixels // 2 ** (len(size.vae.widths) - 1)
    return {
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=side,
            in_channels=size.vae.channels,
            out_channels=size.vae.channels,
            num_layers=size.layers,
            attention_head_dim=size.head,
            num_attention_heads=size.heads,
            joint_attention_dim=size.t5.width,
            caption_projection_dim=width,
            pooled_projection_dim=sum(clip.width for clip in size.text),
            pos_embed_max_size=3 * side,
            dual_attention_layers=tuple(range(size.dual)),
            qk_norm="rms_norm",
        ),
        "vae": _vae(size.vae, size.pixels),
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
        "text_encoder_3": _t5(size.t5),
        "tokenizer": tokenizers[0],
        "tokenizer_2": tokenizers[1],
        "tokenizer_3": _t5_tokenizer(),
    }


def _flux(size: FluxSize, words: Sequence[str]) -> dict[str, Any]:
    import diffusers
    import transformers

    tokenizer = _tokenizer(size.text, words)
    return {
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=4 * size.vae.channels,
            num_layers=size.layers,
            num_single_layers=size.single_layers,
            attention_head_dim=size.head,
            num_attention_heads=size.heads,
            joint_attention_dim=size.t5.width,
            pooled_projection_dim=size.text.width,
            guidance_embeds=True,
            axes_dims_rope=(size.head // 8, 7 * size.head // 16, 7 * size.head // 16),
        ),
        "vae": _vae(size.vae, size.pixels),
        "text_encoder": transformers.CLIPTextModel(_clip_config(size.text, tokenizer)),
        "text_encoder_2": _t5(size.t5),
        "tokenizer": tokenizer,
        "tokenizer_2": _t5_tokenizer(),
    }


def _vae(size: VaeSize, pixels: int) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=size.widths,
        down_block_types=("DownEncoderBlock2D",) * len(size.widths),
        up_block_types=("UpDecoderBlock2D",) * len(size.widths),
        layers_per_block=size.layers,
        latent_channels=size.channels,
        norm_num_groups=min(32, size.widths[0] // 4),
        sample_size=pixels,
        scaling_factor=size.scale,
        shift_factor=size.shift,
    )


def _clip_config(size: ClipSize, tokenizer: Any) -> Any:
    import transformers

    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        projection_dim=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // HEAD),
        max_position_embeddings=size.tokens,
        bos_token_id=len(PIECES),
        eos_token_id=len(PIECES) + 1,
        pad_token_id=len(PIECES) + 1,
    )


def _t5(size: T5Size) -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=3 + len(PIECES),
        d_model=size.width,
        d_kv=size.width // size.heads,
        d_ff=size.inner,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config)


def _t5_tokenizer() -> Any:
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in PIECES)]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)


def _tokenizer(size: ClipSize, words: Sequence[str]) -> Any:
    """A CLIP tokenizer with a token for each letter and for each of ``words``."""
    import transformers

    vocabulary = {piece: number for number, piece in enumerate([*PIECES, *MARKS])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=size.tokens)
    tokenizer.add_tokens([transformers.AddedToken(word, single_word=True) for word in words])
    return tokenizer


def save(name: str, folder: Path, words: Sequence[str] = (), seed: int = 0) -> Path:
    """Save the pipeline of the size ``SIZES[name]``, with random weights, in ``folder``."""
    pipeline(SIZES[name], words, seed).save_pretrained(folder)
    return folder


def save_settings(name: str, folder: Path) -> Path:
    """Save the same pipeline without its weights, which is enough to plan a run."""
    pipe = pipeline(SIZES[name], device="meta")
    pipe.save_config(folder)
    parts: dict[str, Any] = pipe.components
    for key, part in parts.items():
        if hasattr(part, "save_config"):
            part.save_config(folder / key)
        elif isinstance(part, nn.Module):
            part.config.save_pretrained(folder / key)  # type: ignore[union-attr, operator]
        elif part is not None:
            part.save_pretrained(folder / key)
    return folder
