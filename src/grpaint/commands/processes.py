"""``--processes``: run a command in several processes of this machine."""

import os
import sys

from grpaint.core.bounds import whole_number
from grpaint.core.errors import ConfigError
from grpaint.parallel.join import is_rank
from grpaint.recipe.config import TrainRecipe, open_recipe

MOST = 1024


def run_in_processes(processes: str | None, most_restarts: int, stage: str, name: str | None, sets: list[str]) -> bool:
    """Run this command in several processes, if it asks for more than one and is not one of them itself.

    Returns whether it has run. ``most_restarts``: how often processes that died are started again.

    Raises:
        ConfigError: ``--processes`` is no number from 1 and not "auto".
        RunError: the run ended early.
    """
    if processes is None or is_rank():
        return False
    count = _automatic(stage, name, sets) if processes == "auto" else whole_number(processes)
    if not count or not 1 <= count <= MOST:
        raise ConfigError(f'--processes {processes:.40}: a whole number from 1 to {MOST}, or "auto".')
    if count == 1:
        return False
    from grpaint.parallel.launch import launch

    launch(count, most_restarts, sys.argv[1:])
    return True


def _automatic(stage: str, name: str | None, sets: list[str]) -> int:
    """Return the number of GPUs, or without one of usable cores, and never more than there are prompts or images."""
    import torch

    recipe, _ = open_recipe(name, stage, sets)
    most = recipe.train.prompts if isinstance(recipe, TrainRecipe) else recipe.train.batch
    return max(1, min(most, torch.cuda.device_count() or len(os.sched_getaffinity(0))))
