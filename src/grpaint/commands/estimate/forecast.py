"""The forecast of a recipe: parameters, memory by phase, model evaluations, disk."""

import math
import re
from dataclasses import dataclass
from typing import Any

from grpaint.backends.fake import fake_runtime
from grpaint.commands.estimate.rehearsal import Memory, TraceCache, rehearse
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Device
from grpaint.recipe.build import Plain
from grpaint.recipe.catalog import kind_of
from grpaint.recipe.config import Recipe, SftRecipe, resolve
from grpaint.recipe.costs import deployed_evaluations, image_evaluations, picture_evaluations, run_evaluations

GIB = 2**30
CONTEXT = GIB // 2  # of a CUDA process before its first tensor; an assumption, printed as such
SLACK = 0.05  # of the peak: workspaces of kernels and gaps between blocks; an assumption, printed as such


def overhead(peak: int, device: str) -> int:
    """Bytes that a GPU is assumed to need on top of ``peak`` bytes of tensors; 0 on a CPU, which is not predicted."""
    return int(CONTEXT + SLACK * peak) if device == "cuda" else 0


def parse_bytes(text: str) -> int:
    """Parse "24GB", "23.5GiB" or "8192MiB" to bytes.

    Raises:
        ConfigError: ``text`` is not of this form, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b", text.strip().lower())
    if not match or not float(match[1]):
        raise ConfigError(f"--gpu {text}: write a size as 24GB (24 * 10^9 bytes) or 24GiB (24 * 2^30).")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** (" kmgt".index(match[2])))


@dataclass(frozen=True)
class Forecast:
    """What a recipe needs; ``evaluations``: network passes per iteration, of all iterations, and of all judging."""

    recipe: Recipe
    device: str
    precision: str
    memory: Memory
    evaluations: tuple[int, int, int]

    @property
    def missing(self) -> str:
        """The data that is not there, for which captions stood in, or an empty text."""
        return str(getattr(self.recipe.data, "missing", ""))

    @property
    def peak(self) -> int:
        """The highest peak of any phase in bytes, with the GPU's overhead."""
        most = max(self.memory.peaks.values())
        return most + overhead(most, self.device)

    def fits(self, limit: int) -> bool:
        """Whether no phase needs more than ``limit`` bytes."""
        return self.peak <= limit

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints: the last ``checkpoint.keep``, the best, and the one being written."""
        return (self.recipe.checkpoint.keep + 2) * sum(self.memory.checkpoint.values())

    def plain(self) -> dict[str, Any]:
        """The forecast as ``grpaint plan --json`` prints it."""
        memory = vars(self.memory) | {"overhead": {n: overhead(v, self.device) for n, v in self.memory.peaks.items()}}
        names = ("iteration", "all", "judging")
        counts = dict(zip(names, self.evaluations, strict=True))
        missing = {"missing": self.missing} if self.missing else {}
        settings = missing | {
            "device": self.device,
            "precision": self.precision,
            "evaluations": counts,
            "disk": self.disk,
        }
        return settings | memory | {"peak": self.peak}


def forecast(table: Plain, stage: str, device: Device | None = None, cache: TraceCache | None = None) -> Forecast:
    """Predict what the recipe ``table`` needs; ``device`` replaces the recipe's own.

    A shared ``cache`` makes further forecasts of the same model faster.

    Raises:
        ConfigError, CheckpointError: the recipe could not run, or its model is not one of grpaint's own.
    """
    recipe, _ = resolve(table, stage)
    if kind_of(type(recipe.model)) is None:
        raise ConfigError(f'model.kind = "{table["model"]["kind"]}": only models of grpaint\'s own can be planned for.')
    runtime = fake_runtime(device or recipe.device, recipe.precision)
    memory = rehearse(recipe, runtime, cache or TraceCache())
    return Forecast(recipe, runtime.target, runtime.precision, memory, _evaluations(recipe))


def _evaluations(recipe: Recipe) -> tuple[int, int, int]:
    """Model evaluations of the first iteration, of all iterations, and at most of all judging."""
    (each, count, total), judge = run_evaluations(recipe), recipe.evaluate
    distilled = getattr(recipe.model, "guided_by", "") == "distilled"
    guided = 0 if isinstance(recipe, SftRecipe) or distilled else len(judge.guided)
    times = 1 + math.ceil(count / judge.every)
    own = image_evaluations(recipe, judge) * judge.prompts + deployed_evaluations(recipe) + judge.probe
    judging = times * own + 2 * guided * judge.prompts * judge.steps
    drawings = count // judge.pictures_every if judge.pictures_every else 0
    return each, total, judging + drawings * picture_evaluations(recipe)
