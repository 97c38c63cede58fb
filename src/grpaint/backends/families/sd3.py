"""Stable Diffusion 3 and 3.5: a rectified flow whose transformer reads two CLIP encoders and T5."""

from typing import Any, ClassVar

from torch import Tensor

from grpaint.backends.families.base import JOINT, Family, window_length
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import flow_path
from grpaint.core.path import Path


class StableDiffusion3(Family):
    PIPELINE = "StableDiffusion3Pipeline"
    # the layers of Flow-GRPO; "attn.to_q" does not match the second, image-only attention ("attn2") of SD3.5 medium
    TARGETS = JOINT
    PATCH = 2
    MOST_TOKENS = 512
    WITHOUT: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        return flow_path(folder, "sd3")

    def idle(self, network: Any) -> tuple[str, ...]:
        last = f"transformer_blocks.{len(network.transformer_blocks) - 1}.attn"  # whose text tokens are dropped
        return f"{last}.add_q_proj", f"{last}.norm_added_q"

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        embeddings, _, pooled, _ = pipe.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, **self.length(tokens)
        )
        return embeddings, pooled

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        if pipe.tokenizer_3 is None:  # without T5
            return pipe.tokenizer, window_length(pipe.tokenizer)
        return pipe.tokenizer_3, (tokens or 256) - 1  # T5 adds an end mark

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        embeddings, pooled = cond
        return pipe.transformer(
            hidden_states=x,
            timestep=t * 1000,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
