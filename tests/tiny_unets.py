"""Tiny pipelines with random weights whose network is a U-Net."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    KolorsPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from tiny_parts import autoencoder, chatglm, clip_config, clip_tokenizer, ready


def sd15(kind: Any = DDIMScheduler, guidance_width: int | None = None, **scheduler: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
            time_cond_proj_dim=guidance_width,
        ),
        scheduler=kind(
            **{
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                **({"clip_sample": False} if kind is DDIMScheduler else {}),
                "set_alpha_to_one": False,
                "steps_offset": 1,
                **scheduler,
            }
        ),
        vae=autoencoder(4, None),
        text_encoder=CLIPTextModel(clip_config(32)),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return ready(pipe)


def lcm() -> LatentConsistencyModelPipeline:
    """A latent consistency model: SD 1.5 whose U-Net is given the guidance."""
    parts = sd15(LCMScheduler, guidance_width=9).components
    return ready(LatentConsistencyModelPipeline(**parts, requires_safety_checker=False))


def sdxl(kind: Any = EulerDiscreteScheduler, spacing: str = "leading", **unet: Any) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    shape = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
        **unet,
    }
    pipe = StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=48,
            attention_head_dim=(2, 4),
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            **shape,
        ),
        scheduler=kind(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing=spacing,
            steps_offset=1,
        ),
        vae=autoencoder(4, None),
        text_encoder=CLIPTextModel(clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(32)),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        add_watermarker=False,
    )
    return ready(pipe)


def ssd1b() -> StableDiffusionXLPipeline:
    """SDXL with attention blocks cut out, unevenly on the way down and up, as SSD-1B has them."""
    return sdxl(
        transformer_layers_per_block=[1, [2]],
        reverse_transformer_layers_per_block=[[2, 1], 1],
        mid_block_type="UNetMidBlock2D",
    )


def kolors() -> KolorsPipeline:
    """SDXL's U-Net with a projection of ChatGLM's states, on 1,100 timesteps."""
    torch.manual_seed(0)
    text_encoder, tokenizer = chatglm()
    other = sdxl(encoder_hid_dim=16, encoder_hid_dim_type="text_proj", projection_class_embeddings_input_dim=16 + 6 * 8)
    pipe = KolorsPipeline(
        unet=other.unet,
        scheduler=EulerDiscreteScheduler.from_config(other.scheduler.config, num_train_timesteps=1100, beta_end=0.014),
        vae=other.vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    return ready(pipe)
