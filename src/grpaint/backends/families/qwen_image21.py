"""Qwen-Image 2.1: a rectified flow over latents of 16 x 16 pixels; its single-stream transformer is block-causal."""

from typing import Any

import torch
from torch import Tensor

from grpaint.backends.families.base import Guidance
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.qwen_image import QwenLatents
from grpaint.backends.families.schedule import flow_path, listed
from grpaint.core.path import Path

INDEX = "model_index.json"


class QwenImage21(QwenLatents):
    """Text to image alone. The text's rows are computed as at time 0, and do not attend to the image's."""

    PIPELINE = "QwenImage21Pipeline"
    PACKED = 1
    FIXED_TOKENS = True
    ONE_LENGTH = True

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        """The scheduler's path, on the levels ``sample_sigmas`` of ``model_index.json`` if it lists them."""
        path = flow_path(folder, "linear", latent[-2] * latent[-1])
        sigmas = folder.settings(INDEX).get("sample_sigmas")
        return listed(path, tuple(sigmas), f"{folder.path / INDEX}: sample_sigmas") if sigmas else path

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": ""} if guidance > 1 else {}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        states, mask, _ = pipe.encode_prompt(texts)
        return states, torch.full((len(texts),), states.shape[1]) if mask is None else mask.sum(1).cpu()

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time is rounded to the precision of the latents, as the stock pipeline rounds it."""
        states, lengths = cond
        text = states[:, : int(lengths[0])]
        slots = torch.arange(text.shape[1] + x[0, 0].numel() // 4, device=x.device) >= text.shape[1]  # of 2 x 2 latents
        output = pipe.transformer(
            hidden_states=self.to_stock(x),
            encoder_hidden_states=text,
            timestep=(t * 1000).to(x.dtype) / 1000,
            img_shapes=[[(1, *x.shape[-2:])]] * len(x),
            img_mask=slots.expand(len(x), -1),
            return_dict=False,
        )[0]
        return self.from_stock(pipe, output[:, text.shape[1] :], x)

    @property
    def packing(self) -> str:
        return "latents = latents.flatten(2).transpose(1, 2)\n"

    def to_stock(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def from_stock(self, pipe: Any, latents: Tensor, like: Tensor) -> Tensor:
        return latents.transpose(1, 2).reshape(like.shape)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents to images on a white ground: the autoencoder's have a channel of opacity."""
        images = super().decode(pipe, latents)
        opacity = (images[:, 3:] + 1) / 2
        return opacity * images[:, :3] + 1 - opacity

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """Encode opaque images."""
        return super().encode_images(pipe, torch.cat([images, torch.ones_like(images[:, :1])], dim=1))
