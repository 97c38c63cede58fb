"""Compute in fp32 with weights that are stored in half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def upcast(module: nn.Module) -> Iterator[None]:
    """Inside the block, compute in fp32 on the rounded weights; only one layer at a time has its weights in fp32."""
    handles = []
    for layer in module.modules():
        tensors = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
        if not tensors:
            continue
        halves = [tensor for tensor in tensors if _is_half(tensor)]
        dtypes = [tensor.dtype for tensor in halves]

        def before(_: nn.Module, args: Any, kwargs: Any, halves: list[Tensor] = halves) -> Any:
            for tensor in halves:
                tensor.data = tensor.data.float()
            return tuple(map(_fp32, args)), {name: _fp32(value) for name, value in kwargs.items()}

        def after(*_: Any, halves: list[Tensor] = halves, dtypes: list[torch.dtype] = dtypes) -> None:
            for tensor, dtype in zip(halves, dtypes, strict=True):
                tensor.data = tensor.data.to(dtype)

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and _is_half(value) else value
