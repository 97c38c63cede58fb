"""Gradients of many parameters in one row, so that they are summed in one exchange."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BUCKET = 2**26  # numbers of a gradient bucket: 256 MiB in fp32


class GradientRow:
    """The memory of a bucket's gradients, which the next bucket uses again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def fill(self, bucket: Sequence[nn.Parameter]) -> Tensor:
        """Return the gradients of a bucket in one row, in fp32; a parameter without one has zeros."""
        count, device = sum(parameter.numel() for parameter in bucket), bucket[0].device
        if self._memory.numel() < count or self._memory.device != device:
            self._memory = torch.empty(count, device=device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        return torch.cat([part.detach().float().flatten() for part in parts], out=self._memory[:count])


def buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters into buckets of at most ``BUCKET`` numbers, each on one device; a larger one is alone."""
    split: list[list[nn.Parameter]] = []
    room, device = 0, None
    for parameter in parameters:
        if not split or parameter.numel() > room or parameter.device != device:
            split.append([])
            room, device = BUCKET, parameter.device
        split[-1].append(parameter)
        room -= parameter.numel()
    return split
