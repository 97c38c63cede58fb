"""FLUX.2: a rectified flow over normalised patches of 2 x 2 latents, conditioned on a language model."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grpaint.backends.families.base import JOINT, Family, Guidance, chat_length
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import flow_path
from grpaint.core.path import FlowPath, Path, Point


@dataclass(frozen=True)
class Flux2Path(FlowPath):
    """A flow whose shift depends on the image's number of patches and on the number of steps.

    The logarithm of the shift is linear in ``patches`` at 10 and at 200 steps, and linear in the steps between and
    beyond; images of more than 4,300 patches have the shift of 200 steps.
    """

    patches: int = 4096

    def of_steps(self, steps: int) -> FlowPath:
        """The same flow with the shift of ``steps`` steps."""
        at_10 = 8.73809524e-5 * self.patches + 1.89833333
        at_200 = 0.00016927 * self.patches + 0.45666666
        share = 1.0 if self.patches > 4300 else (steps - 10) / 190
        return FlowPath(shift=math.exp(at_10 + share * (at_200 - at_10)))

    def grid(self, steps: int) -> tuple[Point, ...]:
        return self.of_steps(steps).grid(steps)

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        return self.of_steps(steps).tail(steps, first, parts)


class Flux2(Family):
    """FLUX.2 dev, whose guidance is distilled and whose language model is Mistral Small 3."""

    PIPELINE = "Flux2Pipeline"
    TARGETS = (*JOINT, "attn.to_qkv_mlp_proj", "attn.to_out")  # the last two are those of the single-stream blocks

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        patches = latent[-2] * latent[-1]
        path = flow_path(folder, "linear", patches)
        dynamic = folder.settings("scheduler/scheduler_config.json").get("use_dynamic_shifting")
        return Flux2Path(patches=patches) if dynamic else path

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return ("distilled",)

    def factor(self, folder: PipelineFolder) -> int:
        return 2 * super().factor(folder)  # a latent is a patch of 2 x 2 of the VAE's

    def latent_shape(self, folder: PipelineFolder, height: int, width: int) -> tuple[int, ...]:
        own_side = 1024 // self.factor(folder)
        channels = folder.settings("transformer/config.json")["in_channels"]
        return channels, *self.sides(folder, height, width, own_side)

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        return (pipe.encode_prompt(texts, **self.length(tokens))[0],)

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer), (tokens or 512) - self.template_length(pipe)

    def template_length(self, pipe: Any) -> int:
        """The number of tokens around a caption."""
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("system", pipe.system_message), ("user", ""))
        ]
        return chat_length(pipe.tokenizer, chat, add_generation_prompt=False)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        height, width = x.shape[-2:]
        distilled = pipe.transformer.config.guidance_embeds
        zero = torch.zeros(1, dtype=torch.long)
        output = pipe.transformer(
            hidden_states=x.flatten(2).transpose(1, 2),
            timestep=t,
            guidance=t.new_full((len(x),), guidance) if distilled else None,
            encoder_hidden_states=cond[0],
            txt_ids=torch.cartesian_prod(zero, zero, zero, torch.arange(cond[0].shape[1])).to(x.device),
            img_ids=torch.cartesian_prod(zero, torch.arange(height), torch.arange(width), zero).to(x.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).reshape(x.shape)

    def from_stock(self, pipe: Any, latents: Tensor, like: Tensor) -> Tensor:
        return latents.transpose(1, 2).reshape(like.shape)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        norm = pipe.vae.bn
        scale = (norm.running_var + norm.eps).sqrt().view(-1, 1, 1)
        patches = latents * scale + norm.running_mean.view(-1, 1, 1)
        return pipe.vae.decode(functional.pixel_shuffle(patches, 2), return_dict=False)[0]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        return self.patches(pipe, pipe.vae.encode(images).latent_dist.mode())

    def patches(self, pipe: Any, latents: Tensor) -> Tensor:
        """Turn the VAE's latents into patches of 2 x 2, normalised by the mean and variance of each channel."""
        return pipe.vae.bn(functional.pixel_unshuffle(latents, 2))


class Flux2Klein(Flux2):
    """FLUX.2 Klein, 4B and 9B: a Qwen3 language model; the base models take guidance, the distilled ones none."""

    PIPELINE = "Flux2KleinPipeline"

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return ("none",) if folder.settings("model_index.json").get("is_distilled") else ("none", "cfg")

    def template_length(self, pipe: Any) -> int:
        chat = [{"role": "user", "content": ""}]
        return chat_length(pipe.tokenizer, chat, add_generation_prompt=True, enable_thinking=False)

    def from_stock(self, pipe: Any, latents: Tensor, like: Tensor) -> Tensor:
        return self.patches(pipe, latents)  # its latents are those of the VAE
