"""Kolors: a U-Net as SDXL's on a diffusion of 1,100 timesteps, conditioned on the states of ChatGLM3."""

from typing import Any, ClassVar

from torch import Tensor

from grpaint.backends.families.sdxl import StableDiffusionXl


class Kolors(StableDiffusionXl):
    PIPELINE = "KolorsPipeline"
    WITHOUT: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    SKIPS_CLIP = False
    MOST_TOKENS = 256  # the stock pipeline pads every caption to so many

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """The last states but one, and the last state of a caption's last token."""
        embeddings, _, pooled, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False)
        return embeddings, pooled

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer, self.MOST_TOKENS - 2  # beside [gMASK] and sop
