"""Count the bytes of live tensors while code runs, and their peak by phase."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, each storage counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@dataclass
class Peak:
    """The most bytes that were live at once: all of them, and without those that were credited."""

    whole: int
    uncredited: int


class Ledger(TorchDispatchMode):
    """A context in which every storage that an operation creates is counted until it is freed.

    Memory that a kernel allocates and frees inside one call (a convolution's workspace) is not a tensor and is not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.credit = 0
        self.peaks: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        self._phases: list[str] = []
        self.phase_history: list[str] = []  # every one so far, in order
        self._watched: list[Peak] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.record_spike(0)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def record_spike(self, extra: int) -> None:
        """Raise the peaks as if ``extra`` bytes were live for a moment, in addition to those counted."""
        now = self.live + extra
        if self._phases and self._phases[-1]:
            name = self._phases[-1]
            self.peaks[name] = max(self.peaks.get(name, 0), now)
        for peak in self._watched:
            peak.whole, peak.uncredited = max(peak.whole, now), max(peak.uncredited, now - self.credit)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record peaks under ``name`` inside this context; of nested phases, under the innermost."""
        self._phases.append(name)
        self.phase_history += [name] if name else []
        self.record_spike(0)
        try:
            yield
        finally:
            self._phases.pop()

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """Yield the peak inside this context, which counts for no phase."""
        self._watched.append(Peak(self.live, self.live - self.credit))
        try:
            with self.phase(""):
                yield self._watched[-1]
        finally:
            self._watched.pop()
