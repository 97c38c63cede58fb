"""``--processes``: run a command in several processes of this machine."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from grpaint.core.bounds import whole_number
from grpaint.core.errors import ConfigError, GrpaintError
from grpaint.parallel.join import is_rank
from grpaint.recipe.config import DEFAULT, Plain, TrainRecipe, open_recipe, override
from grpaint.recipe.trust import Origin, foreign_rewards, recipe_origin, without_rewards
from grpaint.storage.reading import read_toml

MOST = 1024
INTERPRETER = 2**29  # bytes of a process with PyTorch loaded, before its first weight; measured, and rounded up


def run_in_processes(processes: str | None, most_restarts: int, automatic: Callable[[], int]) -> bool:
    """Run this command in several processes, if it asks for more than one and is not one of them itself.

    Returns whether it has run. ``most_restarts``: how often processes that died are started again. ``automatic``
    returns the number that "auto" stands for.

    Raises:
        ConfigError: ``--processes`` is no number from 1 and not "auto".
        RunError: the run ended early.
    """
    if processes is None or is_rank():
        return False
    count = automatic() if processes == "auto" else whole_number(processes)
    if not count or not 1 <= count <= MOST:
        raise ConfigError(f'--processes {processes:.40}: a whole number from 1 to {MOST}, or "auto".')
    if count == 1:
        return False
    from grpaint.parallel.launch import launch

    launch(count, most_restarts, sys.argv[1:])
    return True


def device_count() -> int:
    """Return the number of GPUs, or of usable processor cores on a machine without one."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def training_processes(stage: str, name: str | None, sets: list[str]) -> int:
    """Return how many processes ``--processes auto`` trains a recipe with: one for each GPU, and at most one a prompt.

    Without a GPU it is one for each usable core, as far as the memory that is free holds what each is predicted to
    need. A model that is not grpaint's own has no prediction, and memory is then no limit.
    """
    recipe, settings = open_recipe(name, stage, sets)
    most = recipe.train.prompts if isinstance(recipe, TrainRecipe) else recipe.train.batch
    return _fitting(most, settings, stage)


def examining_processes(name: str | None, sets: list[str], *, trust: bool, most: int = MOST) -> int:
    """Return how many processes, of at most ``most``, "auto" examines a recipe with, or scans prompts with.

    It is one for each GPU or core, as far as the free memory holds what training the recipe is predicted to need.

    Raises:
        ConfigError: there is no such recipe.
    """
    origin = recipe_origin(DEFAULT["train"] if name is None else name, trust=trust)
    return _judging(most, read_toml(origin.file), origin, sets)


def evaluating_processes(sources: list[str], sets: list[str], *, trust: bool) -> int:
    """Return how many processes "auto" evaluates models with: as many as can hold any one of them, as its recipe tells.

    Raises:
        ConfigError, CheckpointError: a model cannot be found.
    """
    from grpaint.commands.evaluate.candidates import parse_candidates

    saved = (candidate.saved for candidate in parse_candidates(sources, trust=trust))
    models = {model.file: model for model in saved}  # RUN:base is the file of RUN
    return min(_judging(MOST, model.settings, model.origin, sets) for model in models.values())


def _judging(most: int, settings: Plain, origin: Origin, sets: list[str]) -> int:
    """Return how many processes can hold a recipe that a file brings, whose code is run only where it is trusted."""
    own = override(without_rewards(settings, foreign_rewards(settings, origin)), sets)
    with origin.guard(sets):
        return _fitting(most, own, str(own.get("stage", "train")))


def _fitting(most: int, settings: Plain, stage: str) -> int:
    """Return the number of GPUs, or of cores as far as the free memory holds the predicted peak of each process."""
    import torch

    count = min(most, device_count())
    if count > 1 and not torch.cuda.is_available():
        with contextlib.suppress(GrpaintError):
            from grpaint.commands.estimate.forecast import forecast

            count = min(count, free_memory() // (INTERPRETER + forecast(settings, stage, "cpu").peak))
    return max(1, count)


def free_memory() -> int:
    """Return the bytes that new processes may take on this machine, or within the limit of its control group."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if sys.platform == "linux" else []
    sizes = {name: 1024 * int(text.split()[0]) for name, _, text in (line.partition(":") for line in lines)}
    free = sizes.get("MemAvailable", sys.maxsize)
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current")
        )
        free = min(free, max(0, limit - used))
    return free
