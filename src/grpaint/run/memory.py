"""Peak memory, and out-of-memory errors as messages that name the phase and the setting to lower."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grpaint.core.errors import MemoryExhausted, is_out_of_memory

LOWER = {
    "load": "precision, or take a smaller model",
    "rollout": "train.prompts, train.group_size or model.batch",
    "reward": "train.prompts or train.group_size",
    "reward_wait": "train.prompts or train.group_size",
    "update": "objective.minibatch",
    "evaluate": "evaluate.prompts or model.batch",
    "pictures": "evaluate.pictures or model.batch",
}


def peak_mib(device: str) -> float:
    """Return the peak memory in MiB: allocated on the GPU since the last call, or else of this process so far."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def memory(phase: str) -> Iterator[None]:
    """Name ``phase`` and what to lower if the block runs out of memory.

    Raises:
        MemoryExhausted: in place of the errors of Python, torch on the CPU, CUDA and cuBLAS.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhausted(phase, LOWER[phase]) from error
