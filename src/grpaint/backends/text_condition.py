"""Text embeddings of distinct captions, whose lengths may differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TextCondition:
    """Text embeddings of distinct captions, and for each row the number of its caption; a group shares one copy."""

    parts: tuple[Tensor, ...]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, index: Tensor) -> Self:
        return replace(self, index=self.index[index.cpu()])

    def tensors(self, rows: slice) -> tuple[Tensor, ...]:
        """The embeddings of some rows, repeated so that each row has its own."""
        return tuple(part[self.index[rows]] for part in self.parts)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the rows; where lengths in dimension 1 differ, the shorter ones are padded with zeros."""
    if parts[0].ndim < 3:
        return torch.cat(list(parts))
    most = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, 0, 0, most - part.shape[1])) for part in parts])


def rows_by_length(lengths: Tensor) -> tuple[Tensor, ...]:
    """Return the row numbers of each length ``[b]``, from the shortest to the longest."""
    _, counts = lengths.unique(return_counts=True)
    return lengths.argsort(stable=True).split(counts.tolist())
