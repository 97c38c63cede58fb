"""Which images or prompts an iteration takes: functions of the seed and the iteration, without any state to save."""

import functools
import hashlib
from collections.abc import Sequence

import torch

from grpaint.core.rng import Key, permutation, uniform

_BLOCK = 1024


@functools.lru_cache(maxsize=8)
def _epoch(key: Key, epoch: int, count: int) -> list[int]:
    return permutation((*key, epoch), count).tolist()


def epoch_order(key: Key, count: int, first: int, length: int) -> list[int]:
    """Return ``length`` positions, each in 0 .. ``count`` - 1, from an endless sequence of shuffled epochs.

    Each epoch contains all ``count`` positions in a new order; the result begins at place ``first`` of the sequence.
    """
    places = range(first, first + length)
    return [_epoch(key, place // count, count)[place % count] for place in places]


def draw_bucket(key: Key, shares: Sequence[int], iteration: int) -> tuple[int, int]:
    """Return an iteration's bucket, drawn in proportion to ``shares``, and how many earlier iterations drew it."""
    blocks = [uniform((*key, block), _BLOCK) for block in range(iteration // _BLOCK + 1)]
    draws = torch.cat(blocks)[: iteration + 1].double() * sum(shares)
    ends = torch.tensor(shares, dtype=torch.double).cumsum(0)
    buckets = torch.searchsorted(ends, draws, right=True)
    last = int(buckets[-1])
    return last, int((buckets[:-1] == last).sum())


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out ``share``, in (0, 1).

    It depends on a hash of the text alone, so a text stays on its side when others are added or removed.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=b"held-out").digest()
    return int.from_bytes(digest, "little") < share * 2**64
