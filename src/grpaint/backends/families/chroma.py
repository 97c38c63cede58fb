"""Chroma: FLUX.1's layout without distilled guidance and CLIP; T5's padding is masked."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpaint.backends.families.base import Guidance, pack, unpack
from grpaint.backends.families.flux import Flux, patch_positions
from grpaint.backends.families.folder import PipelineFolder


class Chroma(Flux):
    PIPELINE = "ChromaPipeline"

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return "none", "cfg"

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {"guidance_scale": guidance}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        embeddings, _, mask, *_ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, **self.length(tokens))
        return embeddings, mask

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer, (tokens or 512) - 1  # T5 adds an end mark

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """The mask has the type of the embeddings, so attention adds it to its logits, as the stock pipeline's does."""
        embeddings, text_mask = cond
        patches, network = pack(x), pipe.transformer
        mask = torch.cat([text_mask, text_mask.new_ones(patches.shape[:2])], 1).to(x.dtype)
        if network.is_gradient_checkpointing:
            network.enable_gradient_checkpointing(partial(_recompute, mask))
        return unpack(
            network(
                hidden_states=patches,
                timestep=t,
                encoder_hidden_states=embeddings,
                txt_ids=x.new_zeros(embeddings.shape[1], 3),
                img_ids=patch_positions(x),
                attention_mask=mask,
                return_dict=False,
            )[0],
            x,
        )


def _recompute(mask: Tensor, block: nn.Module, *inputs: Any) -> Any:
    """Run a block whose activations are recomputed in the backward pass; diffusers 0.42 forgets some blocks' mask."""
    if inputs[-1] is not mask:
        inputs = (*inputs, mask)
    return checkpoint(block, *inputs, use_reentrant=False)
