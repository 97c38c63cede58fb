"""Out of memory, in words: where it happened and what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from grpaint.core.errors import MemoryExhausted

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
    """Out of memory inside says in which phase, and what to lower.

    Raises:
        MemoryExhausted: for what Python, torch on the CPU, CUDA and cuBLAS raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        said = str(error).lower()
        signs = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
        if isinstance(error, RuntimeError) and not any(sign in said for sign in signs):
            raise
        raise MemoryExhausted(phase, LOWER[phase]) from error
