"""FLUX.1: a rectified flow over packed latents; the dev model has distilled guidance."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from grpaint.backends.families.base import JOINT, Guidance, ScaledFlow, pack, unpack
from grpaint.backends.families.folder import PipelineFolder


class Flux(ScaledFlow):
    PIPELINE = "FluxPipeline"
    TARGETS = JOINT
    WITHOUT: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    MOST_TOKENS = 512
    PACKED = 4

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return ("distilled",) if folder.settings("transformer/config.json").get("guidance_embeds") else ("none", "cfg")

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        if kind == "distilled":
            return {"guidance_scale": guidance}
        return {"true_cfg_scale": guidance, "negative_prompt": ""}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        embeddings, pooled, _ = pipe.encode_prompt(texts, None, **self.length(tokens))
        return embeddings, pooled

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer_2, (tokens or 512) - 1  # T5 adds an end mark

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        embeddings, pooled = cond
        takes_guidance = pipe.transformer.config.guidance_embeds
        return unpack(
            pipe.transformer(
                hidden_states=pack(x),
                timestep=t,
                guidance=t.new_full((len(x),), guidance) if takes_guidance else None,
                encoder_hidden_states=embeddings,
                pooled_projections=pooled,
                txt_ids=x.new_zeros(embeddings.shape[1], 3),
                img_ids=patch_positions(x),
                return_dict=False,
            )[0],
            x,
        )


def patch_positions(x: Tensor) -> Tensor:
    """Row and column of each patch of 2 x 2 latents, after a column of zeros: ``[patches, 3]``."""
    zero = torch.zeros(1, dtype=torch.long)
    rows, columns = (torch.arange(side // 2) for side in x.shape[-2:])
    return torch.cartesian_prod(zero, rows, columns).to(x)
