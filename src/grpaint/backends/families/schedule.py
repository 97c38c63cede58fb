"""Noising paths as schedulers' settings describe them."""

import math
from typing import Any, Literal

from grpaint.backends.families.folder import OFF, Folder
from grpaint.core.path import FlowPath, Path, VpPath
from grpaint.core.prediction import Parametrisation

# Their noise schedules are one; PNDM (as Stable Diffusion 1.5 ships it), DDPM and Euler (SDXL) are read as DDIM would
# read them. An Euler step in x / alpha is the DDIM step, and its grid ends in clean data.
DIFFUSION: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DDPMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
}
BETAS: dict[str, Literal["scaled-linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled-linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
KINDS: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v"}


def _diffusion(folder: Folder) -> dict[str, Any]:
    allowed: dict[str, tuple[object, ...]] = {
        "num_train_timesteps": (1000,),
        "beta_schedule": tuple(BETAS),
        "trained_betas": (None,),
        "prediction_type": tuple(KINDS),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "clip_sample": OFF,
        "thresholding": OFF,
        "rescale_betas_zero_snr": OFF,
        "use_karras_sigmas": OFF,
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
    }
    settings = folder.scheduler(DIFFUSION, allowed)
    if settings["_class_name"] == "EulerDiscreteScheduler":  # elsewhere it starts off the path
        allowed |= {
            "timestep_spacing": ("leading",),
            "timestep_type": ("discrete",),
            "final_sigmas_type": ("zero", "sigma_min"),
            "sigma_min": (None,),
            "sigma_max": (None,),
        }
        settings = folder.scheduler(DIFFUSION, allowed)
        settings["set_alpha_to_one"] = settings.get("final_sigmas_type", "zero") == "zero"
    return settings


def diffusion_path(folder: Folder) -> VpPath:
    """The variance-preserving path of a diffusion model's scheduler.

    Raises:
        ConfigError: where no path can express its settings.
    """
    settings = _diffusion(folder)
    return VpPath(
        betas=BETAS[settings.get("beta_schedule", "linear")],
        first_beta=settings.get("beta_start", 0.0001),
        last_beta=settings.get("beta_end", 0.02),
        spacing=settings.get("timestep_spacing", "leading"),
        offset=settings.get("steps_offset", 0),
        final="one" if settings["set_alpha_to_one"] else "first",
    )


def as_ddim(scheduler: Any) -> Any:
    """PNDM and DDPM as DDIM: their noise levels, and the steps of our ODE."""
    if type(scheduler).__name__ not in ("PNDMScheduler", "DDPMScheduler"):
        return scheduler
    from diffusers import DDIMScheduler

    last = bool(DIFFUSION[type(scheduler).__name__]["set_alpha_to_one"])
    last = scheduler.config.get("set_alpha_to_one", last)
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=last)


def diffusion_kind(folder: Folder) -> Parametrisation:
    """What the network of a diffusion model predicts."""
    return KINDS[_diffusion(folder).get("prediction_type", "epsilon")]


def flow_path(folder: Folder, spacing: Literal["linear", "sd3"], tokens: int = 0) -> FlowPath:
    """The path of a ``FlowMatchEulerDiscreteScheduler``.

    ``tokens``: patches of an image, by which a dynamic shift goes: its logarithm is linear in them.

    Raises:
        ConfigError: where no path can express its settings.
    """
    settings = folder.scheduler(
        {"FlowMatchEulerDiscreteScheduler": {"use_dynamic_shifting": False, "time_shift_type": "exponential"}},
        {
            "num_train_timesteps": (1000,),
            "use_dynamic_shifting": (False, True) if tokens else OFF,
            "time_shift_type": ("exponential", "linear"),
            "invert_sigmas": OFF,
            **({"shift_terminal": (None,)} if spacing == "sd3" else {}),
            "use_karras_sigmas": OFF,
            "use_exponential_sigmas": OFF,
            "use_beta_sigmas": OFF,
            "stochastic_sampling": OFF,
        },
    )
    shift = float(settings.get("shift", 1.0))
    if settings["use_dynamic_shifting"]:
        small, large = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
        low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
        shift = low + (high - low) * (tokens - small) / (large - small)
        shift = math.exp(shift) if settings["time_shift_type"] == "exponential" else shift
    return FlowPath(shift=shift, spacing=spacing, terminal=settings.get("shift_terminal") or 0.0)


def stock_steps(path: Path, steps: int) -> bool:
    """Whether the stock DDIM's steps of 1000 // ``steps`` lead from point to point: not where that is rounded."""
    return not isinstance(path, VpPath) or path.spacing == "leading" or 1000 % steps == 0
