"""Lumina Image 2.0: a rectified flow; its single-stream transformer is conditioned on Gemma 2's states."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpaint.backends.families.base import Family
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import flow_path
from grpaint.core.path import Path


class Lumina2(Family):
    PIPELINE = "Lumina2Pipeline"
    PATCH = 2
    MOST_TOKENS = 299  # the table of positions has 300 rows

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        """A shift by size depends on the number of channels: the stock pipeline takes it for that of patches."""
        return flow_path(folder, "linear", latent[0])

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        states = [self._states(pipe, text, tokens) for text in texts]
        return pad_sequence(states, batch_first=True), torch.tensor([len(rows) for rows in states])

    def _states(self, pipe: Any, text: str, tokens: int) -> Tensor:
        """The states ``[tokens, width]`` of a caption; an empty one has no system prompt, like a negative prompt."""
        encodings = pipe.encode_prompt(text, do_classifier_free_guidance=not text, **self.length(tokens))
        states, mask = encodings[:2] if text else encodings[2:]
        return states[0, : int(mask.sum())]

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        system_prompt = pipe.tokenizer(f"{pipe.system_prompt} <Prompt Start> ").input_ids
        return pipe.tokenizer, (tokens or 256) - len(system_prompt)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time runs from 0 (noise) to 1 (data), and its output is the negative velocity."""
        states, lengths = cond
        most = int(lengths.max())
        return -pipe.transformer(
            hidden_states=x,
            timestep=1 - t,
            encoder_hidden_states=states[:, :most],
            encoder_attention_mask=(torch.arange(most) < lengths[:, None]).to(x.device),
            return_dict=False,
        )[0]

    def combine(self, unconditional: Tensor, conditional: Tensor, weight: float) -> Tensor:
        """Classifier-free guidance that keeps the norm of each row of latents, as its pipeline does."""
        guided = super().combine(unconditional, conditional, weight)
        return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
