"""Qwen-Image: a rectified flow over packed latents, conditioned on a language model's states of any length."""

from typing import Any

import torch
from torch import Tensor

from grpaint.backends.families.base import JOINT, Guidance, ScaledFlow, pack, unpack
from grpaint.backends.families.folder import PipelineFolder


class QwenLatents(ScaledFlow):
    """A flow over packed latents of Qwen-Image's video autoencoder."""

    PACKED = 4

    def factor(self, folder: PipelineFolder) -> int:
        return int(2 ** len(folder.settings("vae/config.json")["temperal_downsample"]))

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        return super().decode(pipe, latents.unsqueeze(2))[:, :, 0]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        return super().encode_images(pipe, images.unsqueeze(2))[:, :, 0]


class QwenImage(QwenLatents):
    PIPELINE = "QwenImagePipeline"
    TARGETS = JOINT
    MOST_TOKENS = 1024

    def idle(self, network: Any) -> tuple[str, ...]:
        last = f"transformer_blocks.{len(network.transformer_blocks) - 1}"  # whose text tokens are dropped
        names = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
        return tuple(f"{last}.{name}" for name in names)

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": ""}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        embeddings, mask = pipe.encode_prompt(texts, **self.length(tokens or 512))
        lengths = torch.full((len(texts),), embeddings.shape[1]) if mask is None else mask.sum(1).cpu()
        return embeddings, lengths

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        template_start = pipe.tokenizer(pipe.prompt_template_encode.partition("{}")[0]).input_ids
        return pipe.tokenizer, (tokens or 512) - len(template_start) + pipe.prompt_template_encode_start_idx

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        embeddings, lengths = cond
        most = int(lengths.max())
        mask = torch.arange(most) < lengths[:, None]
        return unpack(
            pipe.transformer(
                hidden_states=pack(x),
                timestep=t,
                encoder_hidden_states=embeddings[:, :most],
                encoder_hidden_states_mask=None if mask.all() else mask.to(x.device),
                img_shapes=[[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x),
                return_dict=False,
            )[0],
            x,
        )

    def combine(self, unconditional: Tensor, conditional: Tensor, weight: float) -> Tensor:
        """Classifier-free guidance that keeps the norm of each token's conditional output, as its pipeline does."""
        guided = pack(super().combine(unconditional, conditional, weight))
        norm = pack(conditional).norm(dim=-1, keepdim=True)
        return unpack(guided * (norm / guided.norm(dim=-1, keepdim=True)), conditional)
