"""Computing in fp32 with weights that are kept in less."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def upcast(module: nn.Module) -> Iterator[None]:
    """Inside, every layer computes in fp32 on its weights as they are rounded; one layer's at a time take the room."""
    handles = []
    for layer in module.modules():
        own = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
        if not own:
            continue
        kept = [tensor for tensor in own if _half(tensor)]
        dtypes = [tensor.dtype for tensor in kept]

        def before(_: nn.Module, args: Any, kwargs: Any, kept: list[Tensor] = kept) -> Any:
            for tensor in kept:
                tensor.data = tensor.data.float()
            return tuple(map(_full, args)), {name: _full(value) for name, value in kwargs.items()}

        def after(*_: Any, kept: list[Tensor] = kept, dtypes: list[torch.dtype] = dtypes) -> None:
            for tensor, dtype in zip(kept, dtypes, strict=True):
                tensor.data = tensor.data.to(dtype)

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and _half(value) else value
