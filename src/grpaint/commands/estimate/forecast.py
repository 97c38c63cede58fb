"""A recipe's needs in numbers: parameters, memory by phase, model evaluations, disk."""

import math
import re
from dataclasses import dataclass
from typing import Any

from grpaint.backends.fake import fake_runtime
from grpaint.commands.estimate.rehearsal import Known, Memory, rehearse
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Device
from grpaint.recipe.build import Plain
from grpaint.recipe.catalog import kind_of
from grpaint.recipe.config import Recipe, SftRecipe, resolve
from grpaint.recipe.costs import costs

GIB = 2**30
CONTEXT = GIB // 2  # of a CUDA process before its first tensor; an assumption, printed as such
SLACK = 0.05  # of the peak: workspaces of kernels and gaps between blocks; an assumption, printed as such


def overhead(peak: int, device: str) -> int:
    """What a GPU takes beside the tensors; nothing is said of a CPU's process."""
    return int(CONTEXT + SLACK * peak) if device == "cuda" else 0


def amount(text: str) -> int:
    """Bytes of "24GB", "23.5GiB" or "8192MiB".

    Raises:
        ConfigError: where it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b", text.strip().lower())
    if not found or not float(found[1]):
        raise ConfigError(f"--gpu {text}: write a size as 24GB (24 * 10^9 bytes) or 24GiB (24 * 2^30).")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (" kmgt".index(found[2])))


@dataclass(frozen=True)
class Forecast:
    """What is said of a recipe; ``evaluations`` are model evaluations of an iteration, of all, and of all judging."""

    recipe: Recipe
    device: str
    precision: str
    memory: Memory
    evaluations: tuple[int, int, int]

    @property
    def peak(self) -> int:
        """The most memory of any phase, with what a GPU takes besides."""
        most = max(self.memory.peaks.values())
        return most + overhead(most, self.device)

    def fits(self, limit: int) -> bool:
        """Whether no phase needs more than ``limit`` bytes."""
        return self.peak <= limit

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are kept, the best, and the one that is being written."""
        return (self.recipe.checkpoint.keep + 2) * sum(self.memory.checkpoint.values())

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        memory = vars(self.memory) | {"overhead": {n: overhead(v, self.device) for n, v in self.memory.peaks.items()}}
        names = ("iteration", "all", "judging")
        counts = dict(zip(names, self.evaluations, strict=True))
        said = {"device": self.device, "precision": self.precision, "evaluations": counts, "disk": self.disk}
        return said | memory | {"peak": self.peak}


def forecast(table: Plain, stage: str, device: Device | None = None, known: Known | None = None) -> Forecast:
    """Plan for a recipe's table; ``device`` in place of its own. ``known`` makes a further plan of a model quicker.

    Raises:
        ConfigError, CheckpointError: where it could not run, or its model is not one of ours.
    """
    recipe, _ = resolve(table, stage)
    if kind_of(type(recipe.model)) is None:
        raise ConfigError(f'model.kind = "{table["model"]["kind"]}": only models of grpaint\'s own can be planned for.')
    runtime = fake_runtime(device or recipe.device, recipe.precision)
    memory = rehearse(recipe, runtime, known or Known())
    return Forecast(recipe, runtime.target, runtime.precision, memory, _evaluations(recipe))


def _evaluations(recipe: Recipe) -> tuple[int, int, int]:
    said, train, judge = costs(recipe), recipe.train, recipe.evaluate
    each = said["evaluations_update"] if isinstance(recipe, SftRecipe) else said["evaluations_iteration"]
    count = min(train.iterations, math.ceil(train.evaluations / each)) if train.evaluations else train.iterations
    distilled = getattr(recipe.model, "guided_by", "") == "distilled"
    guided = 0 if isinstance(recipe, SftRecipe) or distilled else len(judge.guided)
    times = 1 + math.ceil(count / judge.every)
    calls = 1 if judge.guidance == 1 or distilled else 2
    judging = (times * calls + 2 * guided) * judge.prompts * judge.steps + times * judge.probe
    return each, each * count, judging
