"""SDXL and its pruned versions (SSD-1B, Segmind Vega): a U-Net with two CLIP encoders and the image's size."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from grpaint.backends.families.base import Diffusion, guidance_embedding, windows


class StableDiffusionXl(Diffusion):
    PIPELINE = "StableDiffusionXLPipeline"
    WITHOUT: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """The last hidden states but one of both encoders, and the second encoder's pooled text of the first window.

        Empty captions are zeros if the pipeline's settings say so, since its guidance extrapolates from zeros.
        """
        states = []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            ids = windows(tokenizer, texts, tokens).to(pipe.device)
            out = encoder(ids.flatten(0, 1), output_hidden_states=True)
            states.append(out.hidden_states[-2 - (pipe.clip_skip or 0)].unflatten(0, ids.shape[:2]).flatten(1, 2))
        embeddings, pooled = torch.cat(states, -1), out.text_embeds[:: ids.shape[1]]
        if pipe.config.force_zeros_for_empty_prompt:
            nonempty = torch.tensor([bool(text) for text in texts], device=pooled.device)
            embeddings, pooled = embeddings * nonempty[:, None, None], pooled * nonempty[:, None]
        return embeddings, pooled

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        embeddings, pooled = cond
        height, width = (side * pipe.vae_scale_factor for side in x.shape[-2:])
        sizes = x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), 6)  # original, corner, target
        return pipe.unet(
            x,
            t,
            encoder_hidden_states=embeddings,
            timestep_cond=guidance_embedding(pipe, x, guidance),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
