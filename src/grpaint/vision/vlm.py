"""A vision-language model that answers questions about pictures: its next token, its hidden state, its text."""

import functools
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import DTYPES, NetworkPrecision
from grpaint.storage.files import read_weights
from grpaint.vision.pretrained import open_vision_language

VLM_FILES = ("config.json", "*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
Inputs = Mapping[str, Tensor]


class VisionLanguageModel:
    """A model and its processor; pictures and questions go through the processor's own chat template."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def inputs(self, picture: Image.Image, question: str) -> Inputs:
        """Return what the network reads of one picture and one question, up to where the answer begins."""
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        moved = {name: value.to(self.model.device) for name, value in inputs.items()}
        return {name: v.to(self.model.dtype) if v.is_floating_point() else v for name, v in moved.items()}

    @torch.no_grad()
    def first_words(self, inputs: Inputs, words: tuple[str, ...]) -> dict[str, float]:
        """Return the probability of each word as the first token of the answer, with and without a blank before it.

        Raises:
            CheckpointError: a word is more than one token.
        """
        probabilities = self.model(**inputs, use_cache=False).logits[0, -1].float().softmax(0)
        return {word: probabilities[self._token_ids(word)].sum().item() for word in words}

    def _token_ids(self, word: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        spellings = [tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}")]
        single = sorted({ids[0] for ids in spellings if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
        if not single:
            raise CheckpointError(f'"{word}" is no single token of this model; choose answers that are.')
        return single

    @torch.no_grad()
    def last_hidden(self, inputs: Inputs) -> Float[Tensor, " width"]:
        """Return the last layer's hidden state of the last token, in fp32."""
        states: Tensor = self.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        return states[0, -1].float()

    @torch.no_grad()
    def answer(self, inputs: Inputs, max_tokens: int) -> str:
        """Return the likeliest answer, token by token."""
        tokens = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        length = inputs["input_ids"].shape[1]
        text: str = self.processor.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
        return text


@functools.cache
def load_vlm(folder: Path, device: str, precision: NetworkPrecision) -> VisionLanguageModel:
    """Open a model of transformers from its folder, once for each device and precision.

    Raises:
        CheckpointError: if it is missing, damaged, or needs code of its own.
    """
    model, processor = open_vision_language(folder)
    return VisionLanguageModel(model.to(device, DTYPES[precision]), processor)


@functools.cache
def answer_head(file: Path, device: str) -> Callable[[Tensor], Tensor]:
    """Open linear layers with ReLU between them, named N.weight and N.bias after any prefix, in the order of N.

    Raises:
        CheckpointError: if a tensor has another name, or a layer's width does not fit the layer before it.
    """
    tensors, _ = read_weights(file)
    parts = {name: re.fullmatch(r"(?:.*\.)?(\d+)\.(weight|bias)", name) for name in tensors}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, match in parts.items():
        if match is None:
            raise CheckpointError(f"{file}: {name}: a head has layers N.weight and N.bias, and nothing else.")
        layers.setdefault(int(match[1]), {})[match[2]] = tensors[name].to(device, torch.float32)
    ordered = [layers[number] for number in sorted(layers)]
    if not ordered or any(layer.get("weight", torch.empty(0)).ndim != 2 for layer in ordered):
        raise CheckpointError(f"{file}: a head has layers N.weight [out, in] and N.bias [out].")
    widths = [tuple(layer["weight"].shape) for layer in ordered]
    if any(before[0] != after[1] for before, after in pairwise(widths)):
        raise CheckpointError(f"{file}: the widths of its layers, {widths}, do not lead from one to the next.")

    def head(state: Tensor) -> Tensor:
        for number, layer in enumerate(ordered):
            state = state.relu() if number else state
            state = F.linear(state, layer["weight"], layer.get("bias"))
        return state

    return head
