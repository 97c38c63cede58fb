"""Tiny diffusers pipelines with random weights: the offline stand-in for real ones; and a recipe for them."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    KolorsPipeline,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PNDMScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from sentencepiece import SentencePieceTrainer
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    WhisperFeatureExtractor,
)

from grpaint.recipe.config import TrainRecipe, resolve
from grpaint.scenes.world import SceneData

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer(tokens: int = 16) -> CLIPTokenizer:
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=tokens)


def clip_config(width: int, tokens: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5TokenizerFast(vocab=pieces, extra_ids=0)


def autoencoder(channels: int, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=shift,
    )


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


@cache
def letters_vocabulary() -> Any:
    """A file with the vocabulary of ChatGLM's tokenizer, which copies it when it is saved; deleted at the end."""
    file = NamedTemporaryFile(suffix=".model")  # noqa: SIM115
    size = len(LETTERS) + 6
    text = iter([f"{LETTERS} .,"])
    SentencePieceTrainer.train(
        sentence_iterator=text, model_writer=file, vocab_size=size, model_type="char", minloglevel=2
    )
    file.flush()
    return file


def chatglm() -> tuple[ChatGLMModel, ChatGLMTokenizer]:
    tokenizer = ChatGLMTokenizer(letters_vocabulary().name)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        multi_query_attention=True,
        original_rope=True,
    )
    text_encoder = ChatGLMModel(config)
    for parameter in text_encoder.parameters():  # not set by its constructor
        torch.nn.init.normal_(parameter, std=0.3)
    return text_encoder, tokenizer


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


def qwen_tokenizer() -> Qwen2Tokenizer:
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate([*letters, *marks])}, merges=[])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def language_settings(tokenizer: Qwen2Tokenizer, width: int = 32, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }


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


def qwen3_vl_config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            **language_settings(tokenizer, 16),
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [0],
        },
    )


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


def qwen_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            **language_settings(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


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


def ready(pipe: Any) -> Any:
    """In eval mode: a model built from a configuration begins in train mode, and T5 has dropout."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES = {
    "sd3": sd3,
    "sd15": sd15,
    "sd15-v": lambda: sd15(prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True),
    "sd15-pndm": lambda: sd15(PNDMScheduler, skip_prk_steps=True),
    "sdxl": sdxl,
    "ssd-1b": ssd1b,
    "flux-dev": lambda: flux(distilled=True),
    "flux-schnell": lambda: flux(distilled=False),
    "chroma": chroma,
    "flux2-klein-base": flux2,
    "flux2-klein": lambda: flux2(distilled=True),
    "flux2-dev": flux2_dev,
    "kolors": kolors,
    "hidream": hidream,
    "hidream-dev": lambda: hidream(distilled=True),
    "hunyuan-image": hunyuan_image,
    "krea2": krea2,
    "krea2-turbo": lambda: krea2(distilled=True),
    "lumina2": lumina2,
    "qwen-image": qwen_image,
    "qwen-image-2.1": qwen_image21,
    "sana": sana,
    "z-image": z_image,
}


# Layouts of models of few steps; their networks are those of others, but for the guidance of LCM's.
DISTILLED = {
    "sd15-lcm": lcm,
    "sdxl-lcm": lambda: sdxl(LCMScheduler, time_cond_proj_dim=8),
    "sdxl-turbo": lambda: sdxl(EulerAncestralDiscreteScheduler, "trailing"),
}


def save(name: str, root: Path) -> Path:
    """The folder of a saved pipeline."""
    (PIPELINES | DISTILLED)[name]().save_pretrained(root / name)
    return root / name


def save_all(root: Path, names: Iterable[str] = ("sd3", "sd15", "sd15-v")) -> dict[str, Path]:
    """Folders of saved pipelines by name."""
    return {name: save(name, root) for name in names}


def stock(folder: Path) -> Any:
    """The pipeline as any diffusers user opens it."""
    return ready(DiffusionPipeline.from_pretrained(folder))


FLOWS = tuple(name for name in PIPELINES if not name.startswith(("sd1", "sdxl", "ssd", "kolors")))
TOKENS = {  # how many of a caption are read
    **dict.fromkeys(("sd3", "flux-dev", "flux-schnell"), 16),
    **dict.fromkeys(("hidream", "hidream-dev"), 16),
    **dict.fromkeys(("flux2-klein-base", "flux2-klein"), 96),
    **dict.fromkeys(("chroma", "sana"), 48),
    **dict.fromkeys(("krea2", "krea2-turbo"), 256),
    "flux2-dev": 256,  # with its system message
}


def side(name: str) -> int:
    """The pixels of the images on which a pipeline is tested: two stock pipelines take multiples of 32."""
    return 32 if name in ("sana", "qwen-image-2.1") else 16


def recipe(folder: Path, **model: Any) -> TrainRecipe:
    """GRPO on a pipeline's folder, in four steps of few pixels."""
    tokens = {"tokens": TOKENS[folder.name]} if folder.name in TOKENS else {}
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("".join(f"{prompt.text}\n" for prompt in SceneData().prompts(40, 0, 0)))
    table = {
        "model": {
            "kind": "diffusers",
            "base": str(folder),
            "height": side(folder.name),
            "width": side(folder.name),
            "batch": 64,
            "vae_batch": 64,
            "lora": {"rank": 4},
            **tokens,
            **model,
        },
        "data": {"kind": "prompts", "train": str(prompts), "held_out_share": 0.5},
        "plan": {"steps": 4, "sampler": {"kind": "flow-sde" if folder.name in FLOWS else "ddim"}},
        "rewards": {"jpeg": {"kind": "jpeg"}},
        "train": {"iterations": 1, "learning_rate": 1e-3},
    }
    settings = resolve(table, "train")[0]
    assert isinstance(settings, TrainRecipe)
    return settings
