"""Tiny pipelines with random weights, as in ``tiny_flows``: those that have a language model of Qwen's but FLUX.2's."""

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    ByT5Tokenizer,
    Qwen2AudioProcessor,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    WhisperFeatureExtractor,
)

from tiny_parts import autoencoder, language_settings, qwen3_vl_config, qwen_encoder, qwen_tokenizer, ready


def krea2(*, distilled: bool = False) -> Krea2Pipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = Krea2Pipeline(
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=6400
        ),
        vae=qwen_autoencoder(),
        text_encoder=Qwen3VLModel(qwen3_vl_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_select_layers=(1, 2),
        is_distilled=distilled,
    )
    return ready(pipe)


def hunyuan_image(**transformer: Any) -> HunyuanImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = HunyuanImagePipeline(
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=32,
            text_embed_2_dim=16,
            rope_axes_dim=(8, 8),
            **transformer,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75,
        ),
        text_encoder=qwen_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_2=ByT5Tokenizer(),
        guider=AdaptiveProjectedMixGuidance(),
        ocr_guider=AdaptiveProjectedMixGuidance(),
    )
    return ready(pipe)


def qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=qwen_autoencoder(),
        text_encoder=qwen_encoder(tokenizer),
        tokenizer=tokenizer,
    )
    return ready(pipe)


def qwen_image21() -> QwenImage21Pipeline:
    """Qwen-Image 2.1; an audio processor stands in for its processor, which needs torchvision."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|AUDIO|>"], special_tokens=True)
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    pipe = QwenImage21Pipeline(
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.5, 1.0, 2.0],
        ),
        text_encoder=Qwen3VLForConditionalGeneration(qwen3_vl_config(tokenizer)),
        processor=Qwen2AudioProcessor(WhisperFeatureExtractor(), tokenizer, chat_template=template),
    )
    return ready(pipe)


def z_image() -> ZImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4, 0.06),
        text_encoder=Qwen3Model(Qwen3Config(**language_settings(tokenizer), head_dim=16)),
        tokenizer=tokenizer,
    )
    for name, parameter in pipe.transformer.named_parameters():
        if name.endswith("pad_token"):  # not set by its constructor
            torch.nn.init.normal_(parameter)
    return ready(pipe)


def qwen_autoencoder() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 1.0, 2.0],
    )
