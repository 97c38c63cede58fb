"""HunyuanImage 2.1: a rectified flow over latents of 32 x 32 pixels; Qwen2.5-VL, and ByT5 for quoted words."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpaint.backends.families.base import JOINT, Family, Guidance
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import flow_path
from grpaint.core.errors import ConfigError
from grpaint.core.path import Path

NETWORK_SETTINGS = "transformer/config.json"
SIDE = 64  # latents of the stock pipeline's own size


class HunyuanImage(Family):
    PIPELINE = "HunyuanImagePipeline"
    TARGETS = JOINT
    FIXED_TOKENS = True
    GUIDERS = ("guider", "ocr_guider")
    LOADS_LORA = False

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        return flow_path(folder, "linear")

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        """Plain guidance, without the stock guider's momentum over the steps.

        Raises:
            ConfigError: the model is distilled.
        """
        if folder.settings(NETWORK_SETTINGS).get("use_meanflow"):
            raise ConfigError(
                f"{folder.path / NETWORK_SETTINGS}: use_meanflow = true: this distilled model also takes the time of "
                "the next step, which no sampler here gives it. Use the base model, HunyuanImage 2.1."
            )
        return "none", "cfg"

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {}  # its guiders have it

    def factor(self, folder: PipelineFolder) -> int:
        return int(folder.settings("vae/config.json")["spatial_compression_ratio"])

    def latent_shape(self, folder: PipelineFolder, height: int, width: int) -> tuple[int, ...]:
        return folder.settings(NETWORK_SETTINGS)["in_channels"], *self.sides(folder, height, width, SIDE)

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """States of the language model and of ByT5, and ``[b, 2]`` their lengths; ByT5 has 0 without quoted words."""
        states, mask, glyphs, glyph_mask = pipe.encode_prompt(texts, batch_size=len(texts))
        lengths = torch.stack([mask.sum(1), glyph_mask.sum(1)], dim=1).cpu()
        most, most_glyphs = lengths.amax(0).clamp(min=1).tolist()
        return states[:, :most], glyphs[:, :most_glyphs].to(states.dtype), lengths

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        template_start = pipe.tokenizer(pipe.prompt_template_encode.partition("{}")[0]).input_ids
        whole = pipe.tokenizer_max_length + pipe.prompt_template_encode_start_idx
        return pipe.tokenizer, whole - len(template_start)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time is in thousandths, rounded to the precision of the latents, as the stock pipeline rounds it."""
        (states, glyphs, lengths), network = cond, pipe.transformer
        if network.is_gradient_checkpointing:  # that of diffusers 0.42 refuses the keywords of its blocks
            network.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
        most, most_glyphs = lengths.amax(0).tolist()
        masks = [(torch.arange(most) < lengths[:, :1]).to(x.device)]
        masks.append((torch.arange(most_glyphs) < lengths[:, 1:]).to(x.device))
        return network(
            hidden_states=x,
            timestep=(t * 1000).to(x.dtype),
            encoder_hidden_states=states[:, :most],
            encoder_attention_mask=masks[0],
            encoder_hidden_states_2=glyphs[:, :most_glyphs] if most_glyphs else None,
            encoder_attention_mask_2=masks[1] if most_glyphs else None,
            return_dict=False,
        )[0]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """Encode whole images, also with ``vae_tiling``: diffusers 0.42 encodes tiles of videos alone."""
        tiling, pipe.vae.use_tiling = pipe.vae.use_tiling, False
        try:
            return super().encode_images(pipe, images)
        finally:
            pipe.vae.use_tiling = tiling
