"""HiDream-I1: a rectified flow; its transformer has routed experts and is conditioned on two CLIPs, T5 and Llama."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.backends.families.base import Guidance, ScaledFlow
from grpaint.backends.families.folder import SCHEDULER, PipelineFolder
from grpaint.backends.families.schedule import flow_path, flow_path_of_solver, stock_ode
from grpaint.core.errors import ConfigError
from grpaint.core.path import TRAIN_STEPS, Path

SOLVER = "UniPCMultistepScheduler"
LLAMA = "text_encoder_4"


class HiDream(ScaledFlow):
    """HiDream-I1 Full, which takes guidance, and the distilled Dev and Fast, which take none.

    The distilled models are known by their scheduler, a ``FlowMatchLCMScheduler``.
    """

    PIPELINE = "HiDreamImagePipeline"
    TARGETS = tuple(f"attn1.{layer}{text}" for layer in ("to_q", "to_k", "to_v", "to_out") for text in ("", "_t"))

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        if not any(folder.settings("model_index.json").get(LLAMA) or ()):
            raise ConfigError(
                f"{folder.path}: no {LLAMA} in model_index.json: HiDream's repositories come without Llama 3.1 8B "
                f"Instruct. Open the pipeline in diffusers with it as {LLAMA} and tokenizer_4, "
                "save_pretrained(FOLDER), and set model.base to FOLDER."
            )
        solver = folder.settings(SCHEDULER).get("_class_name") == SOLVER
        return flow_path_of_solver(folder, SOLVER) if solver else flow_path(folder, "sd3")

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        distilled = folder.settings(SCHEDULER).get("_class_name") == "FlowMatchLCMScheduler"
        return ("none",) if distilled else ("none", "cfg")

    def latent_shape(self, folder: PipelineFolder, height: int, width: int) -> tuple[int, ...]:
        shape = super().latent_shape(folder, height, width)
        _check_room(folder.settings("transformer/config.json")["max_resolution"], *shape[-2:])
        return shape

    def prepare(self, network: Any, *, fake: bool) -> None:
        """Let gradients through the routed experts, which compute without them in eval mode.

        They have no dropout. With a ``fake`` network every expert is given as many tokens.
        """
        for module in network.modules():
            if type(module).__name__ == "MOEFeedForwardSwiGLU":
                module.train()
                module.gate.eval()  # in train mode it would compute a loss that nothing reads
                module._force_inference_output = False
                if fake:
                    module.forward = partial(_spread_evenly, module)

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """Encode captions by T5 ``[b, n, d]``, every layer of Llama ``[b, layers, n, d]`` and both CLIPs ``[b, d]``."""
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, **self.length(tokens))
        return t5, llama.transpose(0, 1).contiguous(), pooled

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer_4, (tokens or 128) - 1  # Llama adds a begin mark

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """Its output is the negative velocity; a solver's times are whole thousandths, rounded down."""
        t5, llama, pooled = cond
        thousandths = t * TRAIN_STEPS
        return -pipe.transformer(
            hidden_states=x,
            timesteps=thousandths.long() if type(pipe.scheduler).__name__ == SOLVER else thousandths,
            encoder_hidden_states_t5=t5,
            encoder_hidden_states_llama3=llama.transpose(0, 1),
            pooled_embeds=pooled,
            return_dict=False,
        )[0]

    def stock_ode(self, scheduler: Any, path: Path) -> tuple[str, dict[str, Any]] | None:
        if type(scheduler).__name__ == SOLVER:
            return SOLVER, {"solver_order": 1, "disable_corrector": range(TRAIN_STEPS)}
        return stock_ode(scheduler, path)

    def stock_settings(self, pipe: Any, height: int, width: int) -> dict[str, Any]:
        """The stock pipeline scales every size to this side's square, and rounds the result down."""
        return {"default_sample_size": math.sqrt(height * width) / pipe.vae_scale_factor * (1 + 1e-9)}

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        latents = super().encode_images(pipe, images)
        _check_room(pipe.transformer.config.max_resolution, *latents.shape[-2:])
        return latents


def _check_room(most: tuple[int, int], height: int, width: int) -> None:
    """Raise ConfigError if the network has no room for ``height`` x ``width`` latents that are not square."""
    if height != width and height * width > most[0] * most[1]:
        raise ConfigError(
            f"model.height, model.width: {height} x {width} latents are more than the {most[0]} x {most[1]} that this "
            "model takes of an image that is not square; choose a smaller or a square one."
        )


def _spread_evenly(experts: nn.Module, x: Tensor) -> Tensor:
    """What a layer of routed experts computes, but tokens go to experts by their place, whatever they hold."""
    parts: Any = experts
    _, weights, _ = parts.gate(x)
    tokens = x.flatten(0, -2).repeat_interleave(parts.num_activated_experts, dim=0)
    pairs = zip(parts.experts, tokens.tensor_split(len(parts.experts)), strict=True)
    outputs = torch.cat([expert(part) for expert, part in pairs]).unflatten(0, weights.shape)
    return (outputs * weights[..., None]).sum(1).to(x.dtype).view_as(x) + parts.shared_experts(x)
