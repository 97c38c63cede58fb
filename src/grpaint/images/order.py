"""Which items an iteration takes: a function of the seed and the iteration, without a memory of its own."""

import functools
import hashlib
from collections.abc import Sequence

import torch

from grpaint.core.rng import Key, permutation, uniform

_BLOCK = 1024


@functools.lru_cache(maxsize=8)
def _epoch(key: Key, epoch: int, count: int) -> list[int]:
    return permutation((*key, epoch), count).tolist()


def stream(key: Key, count: int, first: int, wanted: int) -> list[int]:
    """Places ``first`` to ``first + wanted`` of endless epochs, each of all ``count`` items in a new order."""
    places = range(first, first + wanted)
    return [_epoch(key, place // count, count)[place % count] for place in places]


def turn(key: Key, shares: Sequence[int], iteration: int) -> tuple[int, int]:
    """The bucket of an iteration, drawn in proportion to ``shares``, and how often it came before."""
    blocks = [uniform((*key, block), _BLOCK) for block in range(iteration // _BLOCK + 1)]
    draws = torch.cat(blocks)[: iteration + 1].double() * sum(shares)
    ends = torch.tensor(shares, dtype=torch.double).cumsum(0)
    chosen = torch.searchsorted(ends, draws, right=True)
    last = int(chosen[-1])
    return last, int((chosen[:-1] == last).sum())


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share; it stays on its side whatever else comes or goes."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=b"held-out").digest()
    return int.from_bytes(digest, "little") < share * 2**64
