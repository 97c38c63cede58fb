"""Z-Image: a rectified flow; its single-stream transformer is conditioned on a language model's states."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpaint.backends.families.base import Guidance, ScaledFlow, chat_length


class ZImage(ScaledFlow):
    PIPELINE = "ZImagePipeline"

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {"guidance_scale": guidance - 1}  # it adds this times the difference to the conditional output

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        embeddings, _ = pipe.encode_prompt(
            list(texts),  # a copy, since the pipeline changes the list
            do_classifier_free_guidance=False,
            **self.length(tokens),
        )
        return pad_sequence(embeddings, batch_first=True), torch.tensor([len(states) for states in embeddings])

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        chat = [{"role": "user", "content": ""}]
        template_length = chat_length(pipe.tokenizer, chat, add_generation_prompt=True, enable_thinking=True)
        return pipe.tokenizer, (tokens or 512) - template_length

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time runs from 0 (noise) to 1 (data), and its output is the negative velocity."""
        states = [row[:length] for row, length in zip(cond[0], cond[1].tolist(), strict=True)]
        frames = list(x.unsqueeze(2).unbind())
        return -torch.stack(pipe.transformer(frames, 1 - t, states, return_dict=False)[0])[:, :, 0]
