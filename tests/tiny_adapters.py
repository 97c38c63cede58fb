"""LoRA files of random weights, as other programs write them, and how far our latents are from stock ones."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from grpaint.backends.diffusers import DiffusersPolicy

TEXTS = ["a red circle", "two"]
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def adapted(folder: Path, network: str = "unet", **settings: Any) -> Any:
    """A stock pipeline with a peft adapter of random weights."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    getattr(pipe, network).add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LAYERS, **settings}))
    torch.manual_seed(1)
    for name, parameter in getattr(pipe, network).named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return pipe


def tensors_of(pipe: Any, network: str = "unet") -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(getattr(pipe, network)).items()}


def save_diffusers(pipe: Any, to: Path, network: str = "unet") -> Path:
    metadata = _collate_lora_metadata({network: getattr(pipe, network)})
    pipe.save_lora_weights(to, **{f"{network}_lora_layers": tensors_of(pipe, network)}, **metadata)
    return to


def save_peft(pipe: Any, to: Path) -> Path:
    """The folder that PeftModel.save_pretrained writes, as flow_grpo and Flow-Factory do."""
    to.mkdir()
    save_file({f"base_model.model.{name}": t for name, t in tensors_of(pipe).items()}, to / "adapter_model.safetensors")
    config = pipe.unet.peft_config["default"].to_dict()
    (to / "adapter_config.json").write_text(json.dumps(config, default=sorted))
    return to


def stock_latents(policy: DiffusersPolicy) -> Tensor:
    """Latents of the stock sampler with our weights, of the captions ``TEXTS``."""
    with torch.no_grad():
        return policy.stock(TEXTS, policy.noise((0, 0, "x"), range(2)), 2)


def difference(policy: DiffusersPolicy, pipe: Any) -> float:
    """The relative difference of our latents from those of a stock pipeline of the same base."""
    theirs = pipe(
        prompt=TEXTS,
        latents=policy.noise((0, 0, "x"), range(2)),
        num_inference_steps=2,
        height=16,
        width=16,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    return ((stock_latents(policy) - theirs).norm() / theirs.norm()).item()
