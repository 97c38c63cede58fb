"""Parts of tiny pipelines with random weights: tokenizers, text encoders, an autoencoder."""

from functools import cache
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
)
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from sentencepiece import SentencePieceTrainer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

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


def ready(pipe: Any) -> Any:
    """In eval mode: a model built from a configuration begins in train mode, and T5 has dropout."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
