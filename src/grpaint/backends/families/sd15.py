"""Stable Diffusion 1.x and 2.x: a variance-preserving diffusion whose U-Net has one CLIP encoder."""

from typing import Any, ClassVar

from torch import Tensor

from grpaint.backends.families.base import Diffusion, windows


class StableDiffusion(Diffusion):
    PIPELINE = "StableDiffusionPipeline"
    WITHOUT: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        ids = windows(pipe.tokenizer, texts, tokens).to(pipe.device)
        states = pipe.text_encoder(ids.flatten(0, 1))[0]
        return (states.unflatten(0, ids.shape[:2]).flatten(1, 2),)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        return pipe.unet(x, t, encoder_hidden_states=cond[0], return_dict=False)[0]
