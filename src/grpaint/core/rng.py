"""Keyed randomness: the same key gives the same numbers, whatever the batch split, rank or device.

No generator travels through the package and no global seed is set, so a resumed run needs no saved random state.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Key = tuple[int | str, ...]


def seed_of(*key: int | str) -> int:
    """The seed of the torch generator that belongs to a key; for noise, the row is its last part."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def noise(key: Key, rows: Sequence[int] | Tensor, shape: Sequence[int]) -> Float[Tensor, "b *latent"]:
    """Standard-normal noise ``[len(rows), *shape]``, fp32 on the CPU; a row depends on ``(*key, row)`` alone.

    ``key`` is ``(seed, iteration, step)`` in a rollout; rows are sample numbers.
    """
    numbers = rows.tolist() if isinstance(rows, Tensor) else rows
    out = torch.empty(len(numbers), *shape)
    for into, row in zip(out, numbers, strict=True):
        into.normal_(generator=_generator(*key, int(row)))
    return out


def uniform(key: Key, count: int) -> Float[Tensor, " b"]:
    """``count`` numbers in [0, 1) that belong to ``key``."""
    return torch.rand(count, generator=_generator(*key))


def permutation(key: Key, count: int) -> Int[Tensor, " b"]:
    """The numbers 0..count-1 in an order that belongs to ``key``."""
    return torch.randperm(count, generator=_generator(*key))
