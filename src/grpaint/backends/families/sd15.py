"""Stable Diffusion 1.x and 2.x: a variance-preserving diffusion whose U-Net has one CLIP encoder."""

from typing import Any, ClassVar

from torch import Tensor

from grpaint.backends.families.base import Diffusion, guidance_embedding, windows


class StableDiffusion(Diffusion):
    PIPELINE = "StableDiffusionPipeline"
    ALIASES = ("LatentConsistencyModelPipeline",)
    WITHOUT: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        ids = windows(pipe.tokenizer, texts, tokens).to(pipe.device)
        out = pipe.text_encoder(ids.flatten(0, 1), output_hidden_states=bool(pipe.clip_skip))
        states = out[0]
        if pipe.clip_skip:
            norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
            states = norm(out.hidden_states[-1 - pipe.clip_skip])
        return (states.unflatten(0, ids.shape[:2]).flatten(1, 2),)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        embedding = guidance_embedding(pipe, x, guidance)
        return pipe.unet(x, t, encoder_hidden_states=cond[0], timestep_cond=embedding, return_dict=False)[0]
