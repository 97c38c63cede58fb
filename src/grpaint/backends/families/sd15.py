"""Stable Diffusion 1.x and 2.x: a variance-preserving diffusion whose U-Net reads one CLIP encoder."""

from typing import Any, Literal

from torch import Tensor

from grpaint.backends.families import OFF, Folder, latent_sides, vae_decode, vae_encode
from grpaint.core.path import Path, VpPath
from grpaint.core.prediction import Parametrisation

NETWORK = "unet"
TARGETS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
WITHOUT: dict[str, Any] = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "feature_extractor": None,
    "image_encoder": None,
}

# Their noise schedules are one; PNDM (as Stable Diffusion 1.5 ships it) and DDPM are read as DDIM would read them.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DDPMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
}
BETAS: dict[str, Literal["scaled-linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled-linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
KINDS: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v"}


def _scheduler(folder: Folder) -> dict[str, Any]:
    return folder.scheduler(
        SCHEDULERS,
        {
            "num_train_timesteps": (1000,),
            "beta_schedule": tuple(BETAS),
            "trained_betas": (None,),
            "prediction_type": tuple(KINDS),
            "timestep_spacing": ("leading", "trailing", "linspace"),
            "clip_sample": OFF,
            "thresholding": OFF,
            "rescale_betas_zero_snr": OFF,
        },
    )


def path(folder: Folder) -> Path:
    settings = _scheduler(folder)
    return VpPath(
        betas=BETAS[settings.get("beta_schedule", "linear")],
        first_beta=settings.get("beta_start", 0.0001),
        last_beta=settings.get("beta_end", 0.02),
        spacing=settings.get("timestep_spacing", "leading"),
        offset=settings.get("steps_offset", 0),
        final="one" if settings["set_alpha_to_one"] else "first",
    )


def parametrisation(folder: Folder) -> Parametrisation:
    return KINDS[_scheduler(folder).get("prediction_type", "epsilon")]


def latent_shape(folder: Folder, height: int, width: int) -> tuple[int, ...]:
    network = folder.settings("unet/config.json")
    return network["in_channels"], *latent_sides(folder, height, width, network["sample_size"])


def encode(pipe: Any, texts: list[str]) -> tuple[Tensor, ...]:
    embeddings, _ = pipe.encode_prompt(texts, pipe.device, 1, do_classifier_free_guidance=False)
    return (embeddings,)


def call(pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
    return pipe.unet(x, t, encoder_hidden_states=cond[0], return_dict=False)[0]


def decode(pipe: Any, latents: Tensor) -> Tensor:
    return vae_decode(pipe.vae, latents)


def encode_images(pipe: Any, images: Tensor) -> Tensor:
    return vae_encode(pipe.vae, images)
