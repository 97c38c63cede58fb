"""Counts the bytes of live tensors while code runs, and their peak by phase."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    kept = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in kept}.values())


@dataclass
class Peak:
    """The most bytes that were live at once, in all and without those that were credited."""

    whole: int
    less: int


class Ledger(TorchDispatchMode):
    """Inside it every storage that an operation makes is booked until it is freed.

    What one kernel takes for itself and gives back (a convolution's workspace) is no tensor, and is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.credit = 0
        self.peaks: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        self._phases: list[str] = []
        self._watched: list[Peak] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Book a tensor's storage, unless it is booked."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.spike(0)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def spike(self, extra: int) -> None:
        """For a moment there are ``extra`` bytes more than are live."""
        now = self.live + extra
        if self._phases and self._phases[-1]:
            name = self._phases[-1]
            self.peaks[name] = max(self.peaks.get(name, 0), now)
        for peak in self._watched:
            peak.whole, peak.less = max(peak.whole, now), max(peak.less, now - self.credit)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, peaks are booked under ``name``; the innermost phase counts."""
        self._phases.append(name)
        self.spike(0)
        try:
            yield
        finally:
            self._phases.pop()

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """Gives the peak inside, which no phase is charged with."""
        self._watched.append(Peak(self.live, self.live - self.credit))
        try:
            with self.phase(""):
                yield self._watched[-1]
        finally:
            self._watched.pop()
