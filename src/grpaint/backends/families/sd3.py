"""Stable Diffusion 3 and 3.5: a rectified flow whose transformer reads two CLIP encoders and T5."""

from typing import Any

from torch import Tensor

from grpaint.backends.families import OFF, Folder, latent_sides, vae_decode, vae_encode
from grpaint.core.path import FlowPath, Path
from grpaint.core.prediction import Parametrisation

NETWORK = "transformer"
# the layers of Flow-GRPO; an ending "attn.to_q" leaves out the second, image-only attention ("attn2") of SD3.5 medium
TARGETS: tuple[str, ...] = tuple(
    f"attn.{layer}"
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
WITHOUT: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}


def path(folder: Folder) -> Path:
    settings = folder.scheduler(
        {"FlowMatchEulerDiscreteScheduler": {}},
        {
            "num_train_timesteps": (1000,),
            "use_dynamic_shifting": OFF,
            "invert_sigmas": OFF,
            "shift_terminal": (None,),
            "use_karras_sigmas": OFF,
            "use_exponential_sigmas": OFF,
            "use_beta_sigmas": OFF,
            "stochastic_sampling": OFF,
        },
    )
    return FlowPath(shift=float(settings.get("shift", 1.0)), spacing="sd3")


def parametrisation(folder: Folder) -> Parametrisation:  # noqa: ARG001  its scheduler knows but one
    return "velocity"


def latent_shape(folder: Folder, height: int, width: int) -> tuple[int, ...]:
    network = folder.settings("transformer/config.json")
    sides = latent_sides(folder, height, width, network["sample_size"], network["patch_size"])
    return network["in_channels"], *sides


def encode(pipe: Any, texts: list[str]) -> tuple[Tensor, ...]:
    embeddings, _, pooled, _ = pipe.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
    return embeddings, pooled


def call(pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
    embeddings, pooled = cond
    return pipe.transformer(
        hidden_states=x,
        timestep=t * 1000,
        encoder_hidden_states=embeddings,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


def decode(pipe: Any, latents: Tensor) -> Tensor:
    return vae_decode(pipe.vae, latents)


def encode_images(pipe: Any, images: Tensor) -> Tensor:
    return vae_encode(pipe.vae, images)
