"""Keyed randomness: the same key gives the same numbers, whatever the batch split, rank or device.

No generator is passed around and no global seed is set, so a resumed run needs no saved random state.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Key = tuple[int | str, ...]


def seed_of(*key: int | str) -> int:
    """Derive the seed of a torch generator from a key; for noise the key ends with the row number."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def noise(key: Key, rows: Sequence[int] | Tensor, shape: Sequence[int]) -> Float[Tensor, "b *latent"]:
    """Draw standard-normal noise ``[len(rows), *shape]``, fp32 on the CPU; a row depends on ``(*key, row)`` alone.

    ``key`` is ``(seed, iteration, step)`` in a rollout; rows are sample numbers.
    """
    numbers = rows.tolist() if isinstance(rows, Tensor) else rows
    out = torch.empty(len(numbers), *shape)
    for sample, row in zip(out, numbers, strict=True):
        sample.normal_(generator=_generator(*key, int(row)))
    return out


def uniform(key: Key, count: int) -> Float[Tensor, " b"]:
    """Draw ``count`` uniform numbers in [0, 1), determined by ``key``."""
    return torch.rand(count, generator=_generator(*key))


def permutation(key: Key, count: int) -> Int[Tensor, " b"]:
    """Return the numbers 0..count-1 in a random order, determined by ``key``."""
    return torch.randperm(count, generator=_generator(*key))
