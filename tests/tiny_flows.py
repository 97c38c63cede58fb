"""Tiny pipelines with random weights whose network is a transformer that predicts velocities."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tiny_parts import autoencoder, clip_config, clip_tokenizer, language_settings, qwen_tokenizer, ready, t5


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    text_encoder_3, tokenizer_3 = t5()
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4, 0.06),
        text_encoder=CLIPTextModelWithProjection(clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16)),
        text_encoder_3=text_encoder_3,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=tokenizer_3,
    )
    return ready(pipe)


def flux(*, distilled: bool) -> FluxPipeline:
    torch.manual_seed(0)
    text_encoder_2, tokenizer_2 = t5()
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if distilled else {"shift": 1.0}
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.15, **shift),
        vae=autoencoder(4, 0.06),
        text_encoder=CLIPTextModel(clip_config(16)),
        text_encoder_2=text_encoder_2,
        tokenizer=clip_tokenizer(),
        tokenizer_2=tokenizer_2,
    )
    return ready(pipe)


def chroma() -> ChromaPipeline:
    torch.manual_seed(0)
    text_encoder, tokenizer = t5()
    pipe = ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=autoencoder(4, 0.06),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    return ready(pipe)


def flux2(*, distilled: bool = False) -> Flux2KleinPipeline:
    """FLUX.2 Klein, whose embeddings are the states after layers 9, 18 and 27."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = Flux2KleinPipeline(
        transformer=flux2_transformer(guidance_embeds=False),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_autoencoder(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**language_settings(tokenizer, 8, 27), head_dim=4)),
        tokenizer=tokenizer,
        is_distilled=distilled,
    )
    return ready(pipe)


def flux2_dev() -> Flux2Pipeline:
    """FLUX.2 dev; a tokenizer with a chat template stands in for its processor, which needs torchvision."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}<|im_end|>"
        "{% endfor %}{% endfor %}"
    )
    config = Mistral3Config(
        text_config={"model_type": "mistral", **language_settings(tokenizer, 8, 30), "head_dim": 4},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        },
    )
    pipe = Flux2Pipeline(
        transformer=flux2_transformer(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_autoencoder(),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
    )
    return ready(pipe)


def flux2_transformer(*, guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def flux2_autoencoder() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def lumina2(**transformer: Any) -> Lumina2Pipeline:
    """T5's tokenizer stands in for Gemma's: it too adds a mark to an empty caption."""
    torch.manual_seed(0)
    tokenizer = t5()[1]
    pipe = Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_attention_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 32, 32),
            cap_feat_dim=32,
            **{"num_refiner_layers": 1, "num_kv_heads": 2, **transformer},
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(4, 0.06),
        text_encoder=Gemma2Model(Gemma2Config(**language_settings(tokenizer), head_dim=16, sliding_window=512)),
        tokenizer=tokenizer,
    )
    return ready(pipe)


def hidream(*, distilled: bool = False) -> HiDreamImagePipeline:
    """HiDream-I1, whose images that are not square have up to 16 x 16 latents; T5's tokenizer stands in for Llama's."""
    torch.manual_seed(0)
    text_encoder_3, tokenizer_3 = t5()
    solver = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipe = HiDreamImagePipeline(
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 32],
            text_emb_dim=32,
            axes_dims_rope=(4, 6, 6),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
        ),
        scheduler=FlowMatchLCMScheduler(shift=3.0) if distilled else UniPCMultistepScheduler(**solver),
        vae=autoencoder(4, 0.06),
        text_encoder=CLIPTextModelWithProjection(clip_config(16, 128)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16, 128)),
        text_encoder_3=text_encoder_3,
        text_encoder_4=LlamaForCausalLM(LlamaConfig(**language_settings(tokenizer_3))),
        tokenizer=clip_tokenizer(128),
        tokenizer_2=clip_tokenizer(128),
        tokenizer_3=tokenizer_3,
        tokenizer_4=t5()[1],
    )
    return ready(pipe)


def sana(qk_norm: str | None = "rms_norm_across_heads") -> SanaPipeline:
    """SANA 1.5, or 1.0 without ``qk_norm``; T5's tokenizer stands in for Gemma's, as in ``lumina2``."""
    torch.manual_seed(0)
    tokenizer = t5()[1]
    pipe = SanaPipeline(
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=8,
            qk_norm=qk_norm,
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41,
        ),
        text_encoder=Gemma2Model(Gemma2Config(**language_settings(tokenizer), head_dim=16, sliding_window=512)),
        tokenizer=tokenizer,
    )
    return ready(pipe)
