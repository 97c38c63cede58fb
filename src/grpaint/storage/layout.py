"""The layout of a safetensors file, known before its tensors are."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from grpaint.storage.reading import parse_object


@dataclass(frozen=True)
class LateTensor:
    """A tensor of a file that ``read`` returns when it is written, such as one that processes gather."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def half(self) -> "LateTensor":
        """Return the same tensor in fp16."""
        return LateTensor(self.shape, torch.float16, lambda: self.read().half())


WeightTensors = Mapping[str, Tensor | LateTensor]


def read_in_order(tensors: WeightTensors) -> Iterator[Tensor]:
    """Yield the tensors of a file in the order of its bytes; processes that gather them all do so."""
    for name in file_header(tensors, {}):
        tensor = tensors[name]
        yield tensor.read() if isinstance(tensor, LateTensor) else tensor.detach()


def file_header(tensors: WeightTensors, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the header of a file, its tensors in the order in which safetensors writes them."""
    raw = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}, dict(metadata))
    header = parse_object(raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode(), "the header of tensors")
    labels = header.pop("__metadata__", None)
    end = 0
    for name, entry in header.items():
        shape, begin = tensors[name].shape, end
        end += math.prod(shape) * tensors[name].dtype.itemsize
        entry.update(shape=list(shape), data_offsets=[begin, end])
    # safetensors writes the labels in a random order, and equal weights must make equal files
    return ({"__metadata__": dict(sorted(labels.items()))} if labels else {}) | header
