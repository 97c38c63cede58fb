"""The registry of pieces: names to import paths. A piece is imported when a recipe first names it.

A user's own piece needs no entry: ``kind = "my_module:MyReward"`` or ``kind = "path/to/file.py:my_reward"``.
"""

import difflib
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.core.importing import import_packaged, import_target
from grpaint.core.user_code import user_code

CATALOG: dict[str, dict[str, str]] = {
    "models": {
        "scenes": "grpaint.backends.scenes:Scenes",
        "diffusers": "grpaint.backends.diffusers:Diffusers",
    },
    "data": {
        "drawn-images": "grpaint.images.data:DrawnImages",
        "images": "grpaint.images.data:ImageData",
        "prompts": "grpaint.images.prompts:PromptData",
        "scenes": "grpaint.scenes.world:SceneData",
    },
    "features": {
        "clip": "grpaint.measures.features:ClipFeatures",
        "inception": "grpaint.measures.features:InceptionFeatures",
        "scenes": "grpaint.measures.features:ScenesFeatures",
    },
    "samplers": {
        "annealed": "grpaint.core.step:Annealed",
        "cps": "grpaint.core.step:Cps",
        "dance-sde": "grpaint.core.step:DanceSde",
        "ddim": "grpaint.core.step:Ddim",
        "flow-sde": "grpaint.core.step:FlowSde",
        "lcm": "grpaint.core.step:Lcm",
        "ode": "grpaint.core.step:Ode",
    },
    "windows": {
        "closed": "grpaint.rollout.window:Closed",
        "prefix": "grpaint.rollout.window:Prefix",
        "random": "grpaint.rollout.window:Random",
        "sliding": "grpaint.rollout.window:Sliding",
        "subset": "grpaint.rollout.window:Subset",
        "whole": "grpaint.rollout.window:Whole",
    },
    "starts": {
        "independent": "grpaint.rollout.start:Independent",
        "reference": "grpaint.rollout.start:Reference",
        "shared": "grpaint.rollout.start:Shared",
    },
    "rewards": {
        "geneval": "grpaint.rewards.geneval:GenEval",
        "ocr": "grpaint.rewards.ocr:Ocr",
        "remote": "grpaint.rewards.elsewhere.remote:Remote",
        "aesthetic": "grpaint.rewards.aesthetic:Aesthetic",
        "clip-score": "grpaint.rewards.clip:ClipScore",
        "hps": "grpaint.rewards.hps:Hps",
        "image-reward": "grpaint.rewards.image_reward:ImageReward",
        "jpeg": "grpaint.rewards.jpeg:Jpeg",
        "lpips": "grpaint.rewards.lpips:LpipsToReference",
        "pick-score": "grpaint.rewards.clip:PickScore",
        "scenes-checker": "grpaint.rewards.scenes:SceneChecker",
        "scenes-cleanliness": "grpaint.rewards.scenes:SceneCleanliness",
        "scenes-distance": "grpaint.rewards.scenes:SceneDistance",
        "scenes-scorer": "grpaint.rewards.scenes:SceneScorer",
        "tag-recall": "grpaint.rewards.tags:TagRecall",
        "vlm-head": "grpaint.rewards.vlm_score:VlmHead",
        "votes": "grpaint.rewards.votes:Votes",
        "vlm-judge": "grpaint.rewards.vlm:VlmJudge",
        "vlm-score": "grpaint.rewards.vlm_score:VlmScore",
        "worker": "grpaint.rewards.elsewhere.worker:Worker",
    },
    "advantages": {
        "batch": "grpaint.learn.advantage:BatchNorm",
        "best-worst": "grpaint.learn.selection:BestWorst",
        "group": "grpaint.learn.advantage:GroupNorm",
        "history": "grpaint.learn.advantage:History",
        "leave-one-out": "grpaint.learn.advantage:LeaveOneOut",
        "ovf": "grpaint.learn.selection:OptimalVariance",
        "per-reward": "grpaint.learn.advantage:PerReward",
        "step-aware": "grpaint.learn.stepwise:StepAware",
    },
    "surrogates": {
        "divergence-mask": "grpaint.learn.surrogate:DivergenceMask",
        "guard": "grpaint.learn.surrogate:Guard",
        "ppo-clip": "grpaint.learn.surrogate:PpoClip",
        "reinforce": "grpaint.learn.surrogate:Reinforce",
    },
    "penalties": {
        "adaptive-kl": "grpaint.learn.penalty:AdaptiveKl",
        "step-kl": "grpaint.learn.penalty:StepKl",
        "velocity-mse": "grpaint.learn.penalty:VelocityMse",
    },
    "objectives": {
        "awm": "grpaint.learn.forward:AdvantageWeightedMatching",
        "denoising": "grpaint.learn.objective:Denoising",
        "diffusion-nft": "grpaint.learn.forward:DiffusionNft",
        "dgpo": "grpaint.learn.preference:Dgpo",
        "dpo": "grpaint.learn.preference:Dpo",
        "epg": "grpaint.learn.forward:ElboPolicyGradient",
        "policy-gradient": "grpaint.learn.objective:PolicyGradient",
    },
    "optimizers": {
        "adamw": "grpaint.recipe.optim:Adamw",
        "muon": "grpaint.recipe.optim:MuonAdamw",
    },
    "loggers": {
        "tensorboard": "grpaint.run.loggers:TensorBoard",
        "trackio": "grpaint.run.loggers:Trackio",
        "wandb": "grpaint.run.loggers:Wandb",
    },
}

# Names in diffusers for which there is no piece here, and what to take instead.
ADVICE = {
    "samplers": {
        "tcd": ' Its step needs a third noise level, which samplers here are not given. Take "cps": with eta 0 it is '
        "TCD with gamma 0, with eta 1 nearly that with gamma 1."
    }
}


def did_you_mean(word: str, known: list[str]) -> str:
    """Return `` Did you mean "x"?`` for the closest known word, or an empty text."""
    near = difflib.get_close_matches(word, known, 1)
    return f' Did you mean "{near[0]}"?' if near else ""


def find_piece(group: str, kind: str, key: str) -> Any:
    """Import the class or function that ``kind`` names in ``group``; ``key`` is the table's, for errors.

    Raises:
        ConfigError: there is no such name, file or attribute; ForeignCode, if a file names it and may not.
    """
    known = CATALOG[group]
    if kind in known:
        return import_packaged(known[kind])
    if ":" not in kind:
        names = sorted(known)
        advice = ADVICE.get(group, {}).get(kind) or did_you_mean(kind, names)
        raise ConfigError(
            f'{key}.kind = "{kind}": no such {group.removesuffix("s")}.{advice} '
            f"There are: {', '.join(names)}; or your own, as module:Name or file.py:name."
        )
    with user_code(f'{key}.kind = "{kind}": cannot be imported: it', ConfigError):
        return import_target(kind, f"{key}.kind")


def kind_of(cls: type) -> tuple[str, str] | None:
    """Return the group and name of a class in the catalog; None for any other class."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    for group, known in CATALOG.items():
        for name, path in known.items():
            if path == target:
                return group, name
    return None
