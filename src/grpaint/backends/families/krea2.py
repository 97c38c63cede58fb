"""Krea 2: a rectified flow; its single-stream transformer reads Qwen3-VL's states after several layers."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpaint.backends.families.base import Guidance, pack, unpack
from grpaint.backends.families.flux import patch_positions
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.qwen_image import QwenLatents
from grpaint.core.path import FlowPath, Path

DISTILLED_SHIFT = math.exp(1.15)


class Krea2(QwenLatents):
    PIPELINE = "Krea2Pipeline"

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        path = super().path(folder, latent)
        dynamic = folder.settings("scheduler/scheduler_config.json").get("use_dynamic_shifting")
        if isinstance(path, FlowPath) and dynamic and self._is_distilled(folder):
            return replace(path, shift=DISTILLED_SHIFT)
        return path

    def _is_distilled(self, folder: PipelineFolder) -> bool:
        return bool(folder.settings("model_index.json").get("is_distilled"))

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return ("none",) if self._is_distilled(folder) else ("none", "cfg")

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {"guidance_scale": guidance - 1}  # it adds this times the difference to the conditional output

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """Encode captions as ``[b, tokens, layers * width]``, without the padding in the middle of the template."""
        embeddings, mask = pipe.encode_prompt(texts, **self.length(tokens))
        states = [rows[valid].flatten(1) for rows, valid in zip(embeddings, mask, strict=True)]
        return pad_sequence(states, batch_first=True), torch.tensor([len(rows) for rows in states])

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        prefix, suffix = pipe.prompt_template_encode_start_idx, pipe.prompt_template_encode_num_suffix_tokens
        whole = (tokens or 512) + prefix - suffix
        return pipe.tokenizer, whole - len(pipe.tokenizer(pipe.prompt_template_encode_prefix).input_ids)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time is rounded to the precision of the latents, as the stock pipeline rounds it."""
        states, lengths = cond
        most = int(lengths.max())
        mask = torch.arange(most) < lengths[:, None]
        positions = patch_positions(x)
        return unpack(
            pipe.transformer(
                hidden_states=pack(x),
                encoder_hidden_states=states[:, :most].unflatten(2, (pipe.transformer.config.num_text_layers, -1)),
                timestep=t.to(x.dtype),
                position_ids=torch.cat([positions.new_zeros(most, 3), positions]),
                encoder_attention_mask=None if mask.all() else mask.to(x.device),
                return_dict=False,
            )[0],
            x,
        )
