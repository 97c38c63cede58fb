"""Stable Diffusion 1.x and 2.x: a variance-preserving diffusion whose U-Net reads one CLIP encoder."""

from typing import Any, ClassVar

from torch import Tensor

from grpaint.backends.families.base import Family, windows
from grpaint.backends.families.folder import Folder
from grpaint.backends.families.schedule import as_ddim, diffusion_kind, diffusion_path
from grpaint.core.path import Path
from grpaint.core.prediction import Parametrisation


class StableDiffusion(Family):
    PIPELINE = "StableDiffusionPipeline"
    NETWORK = "unet"
    WITHOUT: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }

    def path(self, folder: Folder, latent: tuple[int, ...]) -> Path:
        return diffusion_path(folder)

    def parametrisation(self, folder: Folder) -> Parametrisation:
        return diffusion_kind(folder)

    def length(self, tokens: int) -> dict[str, Any]:
        return {}  # its pipeline reads 75

    def deterministic(self, scheduler: Any) -> Any:
        return as_ddim(scheduler)

    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        ids = windows(pipe.tokenizer, texts, tokens).to(pipe.device)
        states = pipe.text_encoder(ids.flatten(0, 1))[0]
        return (states.unflatten(0, ids.shape[:2]).flatten(1, 2),)

    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        return pipe.unet(x, t, encoder_hidden_states=cond[0], return_dict=False)[0]
