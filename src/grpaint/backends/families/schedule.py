"""Noising paths, from the settings of diffusers' schedulers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from grpaint.backends.families.folder import OFF, SCHEDULER, PipelineFolder
from grpaint.core.errors import ConfigError
from grpaint.core.levels import Levels
from grpaint.core.path import DISTILLED_STEPS, TRAIN_STEPS, FlowPath, Path, Point, VpPath
from grpaint.core.prediction import Parametrisation

MOST_TRAIN_STEPS = 10_000  # more than any published model has
BETA_KEYS = ("beta_schedule", "beta_start", "beta_end")
DISTILLED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
HEUN = {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012}
LINSPACE = {"timestep_spacing": "linspace"}
# Schedulers are read by their betas, spacing and levels; the sampler is ours, so the noise of ancestral ones and the
# order of solvers do not matter. The first kind evaluates the network at whole timesteps, as DDIM does. With zero
# terminal SNR its last alpha is exactly 0.
AS_DDIM: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DDPMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
}
# The second kind has levels sigma / alpha, also between timesteps. An Euler step in x / alpha is the DDIM step. With
# zero terminal SNR the last alpha is 2^-12. Values: defaults, and whether a list of levels spans all timesteps.
AS_EULER: dict[str, tuple[dict[str, Any], bool]] = {
    "EulerDiscreteScheduler": (LINSPACE, False),
    "EulerAncestralDiscreteScheduler": (LINSPACE, False),
    "LMSDiscreteScheduler": (LINSPACE, False),
    "HeunDiscreteScheduler": (HEUN, False),
    "KDPM2DiscreteScheduler": (HEUN, False),
    "KDPM2AncestralDiscreteScheduler": (HEUN, False),
    "DPMSolverMultistepScheduler": (LINSPACE, True),
    "DPMSolverSinglestepScheduler": (LINSPACE, True),
    "UniPCMultistepScheduler": (LINSPACE, True),
    "DEISMultistepScheduler": (LINSPACE, True),
}
DIFFUSION = AS_DDIM | {name: defaults for name, (defaults, _) in AS_EULER.items()}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
BETAS: dict[str, Literal["scaled-linear", "linear", "cosine"]] = {
    "scaled_linear": "scaled-linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTION_TYPES: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v"}
LEVELS: dict[str, Levels] = {"karras": "karras", "exponential": "exponential", "beta": "beta"}
ON_OFF = (False, True, None)
LEVEL_SWITCHES: dict[str, tuple[object, ...]] = {f"use_{name}_sigmas": ON_OFF for name in LEVELS}


def _diffusion(folder: PipelineFolder) -> dict[str, Any]:
    allowed: dict[str, tuple[object, ...]] = {
        "beta_schedule": tuple(BETAS),
        "trained_betas": (None,),
        "prediction_type": tuple(PREDICTION_TYPES),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "clip_sample": OFF,
        "thresholding": OFF,
        "rescale_betas_zero_snr": ON_OFF,
        **dict.fromkeys(LEVEL_SWITCHES, OFF),
    }
    settings = folder.scheduler(DIFFUSION, allowed | LEVEL_SWITCHES)
    name = settings["_class_name"]
    if name in AS_EULER:
        allowed |= LEVEL_SWITCHES | {
            "timestep_type": ("discrete",),
            "interpolation_type": ("linear",),
            "final_sigmas_type": ("zero", "sigma_min"),
            "use_flow_sigmas": OFF,
            "use_lu_lambdas": OFF,
            "lambda_min_clipped": (-math.inf, None),
        }
    elif name in ("LCMScheduler", "TCDScheduler"):
        allowed |= {
            "num_train_timesteps": (TRAIN_STEPS,),
            "original_inference_steps": (DISTILLED_STEPS,),
            "timestep_scaling": (10,),
        }
    folder.scheduler(DIFFUSION, allowed)
    count = settings.get("num_train_timesteps", TRAIN_STEPS)
    if type(count) is not int or not 2 <= count <= MOST_TRAIN_STEPS:
        raise ConfigError(
            f"{folder.path / SCHEDULER}: num_train_timesteps = {json.dumps(count):.80}: it must be a whole number "
            f"from 2 to {MOST_TRAIN_STEPS}. Copy the file again."
        )
    if settings.get("rescale_betas_zero_snr") and settings.get("prediction_type", "epsilon") == "epsilon":
        raise ConfigError(
            f'{folder.path / SCHEDULER}: rescale_betas_zero_snr = true with prediction_type = "epsilon": at the first '
            "step alpha is 0, and no image can be read from predicted noise. If the network predicts v, set "
            'model.prediction = "v"; else set neither this nor model.zero_snr.'
        )
    return settings


def _levels(settings: Mapping[str, Any]) -> Levels:
    return next((kind for name, kind in LEVELS.items() if settings.get(f"use_{name}_sigmas")), "timesteps")


def diffusion_path(folder: PipelineFolder) -> VpPath:
    """The variance-preserving path of a diffusion model's scheduler.

    Raises:
        ConfigError: if no path can express its settings.
    """
    settings = _diffusion(folder)
    name, rescaled = settings["_class_name"], settings.get("rescale_betas_zero_snr")
    path = VpPath(
        betas=BETAS[settings.get("beta_schedule", "linear")],
        first_beta=settings.get("beta_start", 0.0001),
        last_beta=settings.get("beta_end", 0.02),
        spacing=settings.get("timestep_spacing", "leading"),
        offset=settings.get("steps_offset", 0),
        train_steps=settings.get("num_train_timesteps", TRAIN_STEPS),
    )
    if name in AS_DDIM:
        return replace(
            path,
            terminal=0.0 if rescaled else None,
            spacing="distilled" if AS_DDIM[name] is DISTILLED else path.spacing,
            final="one" if _ends_clean(name, settings) else "first",
        )
    path = replace(
        path,
        terminal=2**-12 if rescaled else None,
        final="one" if settings.get("final_sigmas_type", "zero") == "zero" else "first",
        continuous=True,
        levels=_levels(settings),
        scaled_start=path.spacing != "leading",
    )
    return replace(path, ends=_ends(name, settings, path)) if path.levels != "timesteps" else path


def _ends_clean(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the last step of a scheduler of the first kind ends in clean data, and not at the first timestep."""
    if AS_DDIM[name] is DISTILLED:
        return name == "LCMScheduler"  # both ignore set_alpha_to_one there
    return bool(settings.get("set_alpha_to_one", AS_DDIM[name]["set_alpha_to_one"]))


def _ends(name: str, settings: Mapping[str, Any], path: VpPath) -> tuple[float | None, float | None]:
    """The highest and lowest of a list of levels, as far as they do not follow from the spacing of timesteps."""
    high, low = settings.get("sigma_max"), settings.get("sigma_min")
    if AS_EULER[name][1]:
        first, last = path.at(path.train_steps - 1), path.at(0)
        high, low = high or first.sigma / first.alpha, low or last.sigma / last.alpha
    return high, low


def listed(path: Path, sigmas: tuple[float, ...], key: str = "model.sigmas") -> Path:
    """``path`` with a list of noise levels, as the stock pipeline takes them by its argument ``sigmas``.

    ``key``: the setting that lists them.

    Raises:
        ConfigError: if the list does not fall from noise to data, or the path is of another kind.
    """
    limit = 1.0 if isinstance(path, FlowPath) else 1e6
    if not all(limit >= here > there > 0 for here, there in pairwise((*sigmas, sigmas[-1] / 2))):
        raise ConfigError(f"{key} = {list(sigmas)}: they must fall, from {limit:g} at most to above 0.")
    if type(path) is FlowPath:  # subclasses have grids of their own
        return replace(path, sigmas=sigmas)
    if isinstance(path, VpPath):
        return replace(
            path, sigmas=sigmas, terminal=None if path.terminal is None else 2**-12, final="one", continuous=True
        )
    raise ConfigError(f"{key}: this family has a path of its own; leave it out.")


def stock_ode(scheduler: Any, path: Path) -> tuple[str, dict[str, Any]] | None:
    """The scheduler class of diffusers and the changed settings that take the ODE's steps on ``path``.

    None if ``scheduler`` itself does, or is not known. Settings whose defaults differ between the classes are given.
    """
    name, settings = type(scheduler).__name__, scheduler.config
    if name == "FlowMatchLCMScheduler":
        return "FlowMatchEulerDiscreteScheduler", {}
    own = "EulerDiscreteScheduler" if isinstance(path, VpPath) and path.continuous else "DDIMScheduler"
    if not isinstance(path, VpPath) or name == own or name not in DIFFUSION:
        return None
    changes: dict[str, Any] = {} if path.terminal is None else {"rescale_betas_zero_snr": True}
    if DIFFUSION[name] in (DISTILLED, HEUN):
        changes |= {key: settings[key] for key in BETA_KEYS}
    if path.sigmas:
        changes["timestep_spacing"] = "trailing" if path.scaled_start else "leading"  # it decides the start alone
    if path.continuous:
        ends = zip(("sigma_max", "sigma_min"), path.ends, strict=True)
        return own, changes | {key: end for key, end in ends if end}
    changes |= {"clip_sample": False, "set_alpha_to_one": _ends_clean(name, settings)}
    return own, changes | ({"timestep_spacing": "trailing"} if path.spacing == "distilled" else {})


def diffusion_parametrisation(folder: PipelineFolder) -> Parametrisation:
    """What the network of a diffusion model predicts."""
    return PREDICTION_TYPES[_diffusion(folder).get("prediction_type", "epsilon")]


def flow_path(folder: PipelineFolder, spacing: Literal["linear", "sd3"], tokens: int = 0) -> FlowPath:
    """The path of a ``FlowMatchEulerDiscreteScheduler`` or ``FlowMatchLCMScheduler``, which have the same levels.

    ``tokens``: the number of patches of an image; 0 allows no dynamic shift. A dynamic shift of type "linear" is linear
    in ``tokens``; one of type "exponential" is the exponential of that.

    Raises:
        ConfigError: if no path can express its settings.
    """
    settings = folder.scheduler(
        {name: {"use_dynamic_shifting": False, "time_shift_type": "exponential"} for name in FLOWS},
        {
            "num_train_timesteps": (1000,),
            "use_dynamic_shifting": (False, True) if tokens else OFF,
            "time_shift_type": ("exponential", "linear"),
            "invert_sigmas": OFF,
            **({"shift_terminal": (None,)} if spacing == "sd3" else {}),
            **LEVEL_SWITCHES,
            "stochastic_sampling": OFF,
            "scale_factors": (None, []),
        },
    )
    shift = float(settings.get("shift", 1.0))
    if settings["use_dynamic_shifting"]:
        small, large = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
        low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
        shift = low + (high - low) * (tokens - small) / (large - small)
        shift = math.exp(shift) if settings["time_shift_type"] == "exponential" else shift
    return FlowPath(
        shift=shift, spacing=spacing, terminal=settings.get("shift_terminal") or 0.0, levels=_levels(settings)
    )


@dataclass(frozen=True)
class SolverFlowPath(FlowPath):
    """A flow on the grid of diffusers' multistep solvers, before the shift from ``top`` towards ``bottom``, then 0.

    At most a level of ``1 - 1e-6`` is reached, as in these solvers.
    """

    top: float = 1 - 1 / TRAIN_STEPS
    bottom: float = 0.0

    def _sigmas(self, first: float, steps: int) -> list[float]:
        """Return ``steps`` shifted levels, evenly spaced before the shift, from a share ``first`` of the way to 0."""
        reach = self.top - self.bottom
        return [min(self._shift(self.bottom + reach * first * (1 - i / steps)), 1 - 1e-6) for i in range(steps)]

    def grid(self, steps: int) -> tuple[Point, ...]:
        return tuple(self.at(s) for s in [*self._sigmas(1.0, steps), 0.0])

    def tail(self, steps: int, first: int, parts: int) -> tuple[Point, ...]:
        return tuple(self.at(s) for s in [*self._sigmas(1 - first / steps, parts), 0.0])


def flow_path_of_solver(folder: PipelineFolder, solver: str = "DPMSolverMultistepScheduler") -> FlowPath:
    """The path of a multistep ``solver`` whose levels are those of a flow, as SANA's and HiDream's are.

    Raises:
        ConfigError: if no path can express its settings.
    """
    settings = folder.scheduler(
        {solver: {"use_flow_sigmas": False, "prediction_type": "epsilon"}},
        {
            "num_train_timesteps": (TRAIN_STEPS,),
            "use_flow_sigmas": (True,),
            "prediction_type": ("flow_prediction",),
            "final_sigmas_type": ("zero",),
            "algorithm_type": ("dpmsolver++",),
            "predict_x0": (True,),
            "shift_terminal": OFF,
            "use_dynamic_shifting": OFF,
            "thresholding": OFF,
            "use_karras_sigmas": OFF,
            "use_exponential_sigmas": OFF,
            "use_beta_sigmas": OFF,
        },
    )
    path = SolverFlowPath(shift=float(settings.get("flow_shift", 1.0)))
    return path if solver == "DPMSolverMultistepScheduler" else replace(path, top=1.0, bottom=1 / TRAIN_STEPS)


def stock_grid_matches(path: Path, steps: int) -> bool:
    """Whether the scheduler of :func:`stock_ode` visits the grid: DDIM's whole numbers of timesteps may not."""
    if not isinstance(path, VpPath) or path.continuous or path.spacing == "leading":
        return True
    divided = DISTILLED_STEPS if path.spacing == "distilled" else path.train_steps
    return path.spacing != "linspace" and divided % steps == 0
