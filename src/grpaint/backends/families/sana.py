"""SANA and SANA 1.5: a rectified flow over latents of 32 x 32 pixels; linear attention, conditioned on Gemma 2."""

import inspect
from typing import Any

import torch
from torch import Tensor

from grpaint.backends.families.base import Family
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import flow_path_of_solver
from grpaint.core.path import Path


class Sana(Family):
    PIPELINE = "SanaPipeline"

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        return flow_path_of_solver(folder)

    def factor(self, folder: PipelineFolder) -> int:
        return int(2 ** (len(folder.settings("vae/config.json")["encoder_block_out_channels"]) - 1))

    def arguments(self, guidance: float, kind: Any) -> dict[str, Any]:
        return {"guidance_scale": guidance, "use_resolution_binning": False}

    def stock_ode(self, scheduler: Any, path: Path) -> tuple[str, dict[str, Any]] | None:
        return "DPMSolverMultistepScheduler", {"solver_order": 1}

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """Captions follow the stock pipeline's instruction; an empty one does not, like its negative prompt."""
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        encodings = [
            pipe.encode_prompt(
                text,
                do_classifier_free_guidance=False,
                complex_human_instruction=instruction if text else None,
                **self.length(tokens),
            )
            for text in texts
        ]
        embeddings, masks = zip(*(encoding[:2] for encoding in encodings), strict=True)
        return torch.cat(embeddings), torch.cat(masks).to(embeddings[0].dtype)

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer, (tokens or 300) - 2

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its time is a whole number of thousandths, as its scheduler rounds it down."""
        embeddings, mask = cond
        network = pipe.transformer
        return network(
            x,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            timestep=(t * 1000).long() * network.config.timestep_scale,
            return_dict=False,
        )[0][:, : x.shape[1]]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        return pipe.vae.encode(images, return_dict=False)[0] * pipe.vae.config.scaling_factor
