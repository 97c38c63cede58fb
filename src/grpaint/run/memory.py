"""Turn an out-of-memory error into a message that names the phase and the setting to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from grpaint.core.errors import MemoryExhausted, is_out_of_memory

LOWER = {
    "load": "precision, or take a smaller model",
    "rollout": "train.prompts, train.group_size or model.batch",
    "reward": "train.prompts or train.group_size",
    "reward_wait": "train.prompts or train.group_size",
    "update": "objective.minibatch",
    "evaluate": "evaluate.prompts or model.batch",
}


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
