"""Tiny diffusers pipelines with random weights: the offline stand-in for real ones; and a recipe for them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from grpaint.recipe.config import TrainRecipe, resolve
from grpaint.scenes.world import SceneData
from tiny_flows import chroma, flux, flux2, flux2_dev, hidream, lumina2, sana, sd3
from tiny_parts import ready
from tiny_qwen_flows import hunyuan_image, krea2, qwen_image, qwen_image21, z_image
from tiny_unets import kolors, lcm, sd15, sdxl, ssd1b

PIPELINES = {
    "sd3": sd3,
    "sd15": sd15,
    "sd15-v": lambda: sd15(prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True),
    "sd15-pndm": lambda: sd15(PNDMScheduler, skip_prk_steps=True),
    "sdxl": sdxl,
    "ssd-1b": ssd1b,
    "flux-dev": lambda: flux(distilled=True),
    "flux-schnell": lambda: flux(distilled=False),
    "chroma": chroma,
    "flux2-klein-base": flux2,
    "flux2-klein": lambda: flux2(distilled=True),
    "flux2-dev": flux2_dev,
    "kolors": kolors,
    "hidream": hidream,
    "hidream-dev": lambda: hidream(distilled=True),
    "hunyuan-image": hunyuan_image,
    "krea2": krea2,
    "krea2-turbo": lambda: krea2(distilled=True),
    "lumina2": lumina2,
    "qwen-image": qwen_image,
    "qwen-image-2.1": qwen_image21,
    "sana": sana,
    "z-image": z_image,
}


# Layouts of models of few steps; their networks are those of others, but for the guidance of LCM's.
DISTILLED = {
    "sd15-lcm": lcm,
    "sdxl-lcm": lambda: sdxl(LCMScheduler, time_cond_proj_dim=8),
    "sdxl-turbo": lambda: sdxl(EulerAncestralDiscreteScheduler, "trailing"),
}


def save(name: str, root: Path) -> Path:
    """The folder of a saved pipeline."""
    (PIPELINES | DISTILLED)[name]().save_pretrained(root / name)
    return root / name


def save_all(root: Path, names: Iterable[str] = ("sd3", "sd15", "sd15-v")) -> dict[str, Path]:
    """Folders of saved pipelines by name."""
    return {name: save(name, root) for name in names}


def stock(folder: Path) -> Any:
    """The pipeline as any diffusers user opens it."""
    return ready(DiffusionPipeline.from_pretrained(folder))


FLOWS = tuple(name for name in PIPELINES if not name.startswith(("sd1", "sdxl", "ssd", "kolors")))
TOKENS = {  # how many of a caption are read
    **dict.fromkeys(("sd3", "flux-dev", "flux-schnell"), 16),
    **dict.fromkeys(("hidream", "hidream-dev"), 16),
    **dict.fromkeys(("flux2-klein-base", "flux2-klein"), 96),
    **dict.fromkeys(("chroma", "sana"), 48),
    **dict.fromkeys(("krea2", "krea2-turbo"), 256),
    "flux2-dev": 256,  # with its system message
}


def side(name: str) -> int:
    """The pixels of the images on which a pipeline is tested: two stock pipelines take multiples of 32."""
    return 32 if name in ("sana", "qwen-image-2.1") else 16


def recipe(folder: Path, **model: Any) -> TrainRecipe:
    """GRPO on a pipeline's folder, in four steps of few pixels."""
    tokens = {"tokens": TOKENS[folder.name]} if folder.name in TOKENS else {}
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("".join(f"{prompt.text}\n" for prompt in SceneData().prompts(40, 0, 0)))
    table = {
        "model": {
            "kind": "diffusers",
            "base": str(folder),
            "height": side(folder.name),
            "width": side(folder.name),
            "batch": 64,
            "vae_batch": 64,
            "lora": {"rank": 4},
            **tokens,
            **model,
        },
        "data": {"kind": "prompts", "train": str(prompts), "held_out_share": 0.5},
        "plan": {"steps": 4, "sampler": {"kind": "flow-sde" if folder.name in FLOWS else "ddim"}},
        "rewards": {"jpeg": {"kind": "jpeg"}},
        "train": {"iterations": 1, "learning_rate": 1e-3},
    }
    settings = resolve(table, "train")[0]
    assert isinstance(settings, TrainRecipe)
    return settings
