"""A vision-language model with random weights, as its folder would be: a few layers, and a token a word."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<image>",
    "USER:",
    "ASSISTANT:",
    "Yes",
    "No",
    "good",
    "fair",
    "bad",
    "a",
    "red",
    "circle",
]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"
)


def vlm_folder(folder: Path) -> Path:
    """Write the model and its processor."""
    words = WORDS + [str(number) for number in range(10)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
    )
    size = {"height": 28, "width": 28}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size)
    processor = LlavaProcessor(
        pictures,
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    layers: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**layers, image_size=28, patch_size=14),
        text_config=LlamaConfig(**layers, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=2),
        image_token_id=3,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.lm_head.weight.data *= 30  # so that words differ in probability
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
