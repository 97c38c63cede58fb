"""Noising paths, from the settings of diffusers' schedulers."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from grpaint.backends.families.folder import OFF, PipelineFolder
from grpaint.core.path import TRAIN_STEPS, FlowPath, Path, Point, VpPath
from grpaint.core.prediction import Parametrisation

# All four have the same noise schedule, so PNDM (Stable Diffusion 1.5), DDPM and Euler (SDXL) are read as DDIM would
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
PREDICTION_TYPES: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v"}


def _diffusion(folder: PipelineFolder) -> dict[str, Any]:
    allowed: dict[str, tuple[object, ...]] = {
        "num_train_timesteps": (1000,),
        "beta_schedule": tuple(BETAS),
        "trained_betas": (None,),
        "prediction_type": tuple(PREDICTION_TYPES),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "clip_sample": OFF,
        "thresholding": OFF,
        "rescale_betas_zero_snr": OFF,
        "use_karras_sigmas": OFF,
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
    }
    settings = folder.scheduler(DIFFUSION, allowed)
    if settings["_class_name"] == "EulerDiscreteScheduler":  # other settings start beside the path
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


def diffusion_path(folder: PipelineFolder) -> VpPath:
    """The variance-preserving path of a diffusion model's scheduler.

    Raises:
        ConfigError: if no path can express its settings.
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
    """A DDIM scheduler in place of PNDM or DDPM: the same noise levels, with the steps of the ODE here."""
    if type(scheduler).__name__ not in ("PNDMScheduler", "DDPMScheduler"):
        return scheduler
    from diffusers import DDIMScheduler

    default = bool(DIFFUSION[type(scheduler).__name__]["set_alpha_to_one"])
    to_one = scheduler.config.get("set_alpha_to_one", default)
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=to_one)


def diffusion_parametrisation(folder: PipelineFolder) -> Parametrisation:
    """What the network of a diffusion model predicts."""
    return PREDICTION_TYPES[_diffusion(folder).get("prediction_type", "epsilon")]


def flow_path(folder: PipelineFolder, spacing: Literal["linear", "sd3"], tokens: int = 0) -> FlowPath:
    """The path of a ``FlowMatchEulerDiscreteScheduler``.

    ``tokens``: the number of patches of an image; 0 allows no dynamic shift. A dynamic shift of type "linear" is linear
    in ``tokens``; one of type "exponential" is the exponential of that.

    Raises:
        ConfigError: if no path can express its settings.
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


@dataclass(frozen=True)
class SolverFlowPath(FlowPath):
    """A flow on the grid of diffusers' multistep solvers, which starts at the shifted 0.999 instead of at 1."""

    def _sigmas(self, top: float, steps: int) -> list[float]:
        """Return ``steps`` shifted levels, evenly spaced before the shift, from ``top`` towards 0."""
        return [self._shift(top * (1 - i / steps)) for i in range(steps)]

    def grid(self, steps: int) -> tuple[Point, ...]:
        return tuple(self.at(s) for s in [*self._sigmas(1 - 1 / TRAIN_STEPS, steps), 0.0])

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        top = (1 - 1 / TRAIN_STEPS) * (1 - first / steps)
        return tuple(self.at(s) for s in [*self._sigmas(top, parts), 0.0])


def flow_path_of_solver(folder: PipelineFolder) -> FlowPath:
    """The path of a ``DPMSolverMultistepScheduler`` whose levels are those of a flow, as SANA's are.

    Raises:
        ConfigError: if no path can express its settings.
    """
    settings = folder.scheduler(
        {"DPMSolverMultistepScheduler": {"use_flow_sigmas": False, "prediction_type": "epsilon"}},
        {
            "num_train_timesteps": (TRAIN_STEPS,),
            "use_flow_sigmas": (True,),
            "prediction_type": ("flow_prediction",),
            "final_sigmas_type": ("zero",),
            "algorithm_type": ("dpmsolver++",),
            "use_dynamic_shifting": OFF,
            "thresholding": OFF,
            "use_karras_sigmas": OFF,
            "use_exponential_sigmas": OFF,
            "use_beta_sigmas": OFF,
        },
    )
    return SolverFlowPath(shift=float(settings.get("flow_shift", 1.0)))


def stock_grid_matches(path: Path, steps: int) -> bool:
    """Whether the stock DDIM's steps of 1000 // ``steps`` end on its own grid; they do not if that is rounded."""
    return not isinstance(path, VpPath) or path.spacing == "leading" or 1000 % steps == 0
