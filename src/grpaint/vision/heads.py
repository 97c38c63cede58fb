"""The small head of the aesthetic predictor and of ImageReward: five linear layers with nothing between them."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError

LAYERS = (0, 2, 4, 6, 7)  # the others are dropout, which is off


class LinearHead:
    """Features to a score; ``tensors`` are named ``layers.N.weight`` and ``layers.N.bias``.

    Raises:
        CheckpointError: where a tensor is missing, left over, or does not follow the one before.
    """

    def __init__(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        wanted = {f"layers.{number}.{part}" for number in LAYERS for part in ("weight", "bias")}
        if tensors.keys() != wanted:
            example = sorted(tensors.keys() ^ wanted)[0]
            raise CheckpointError(f"{file}: not the five linear layers of this head; for example {example}.")
        self.layers = [(tensors[f"layers.{n}.weight"].float(), tensors[f"layers.{n}.bias"].float()) for n in LAYERS]
        widths = [(weight.shape[1], weight.shape[0]) for weight, _ in self.layers]
        if any(one[1] != other[0] for one, other in pairwise(widths)) or widths[-1][1] != 1:
            raise CheckpointError(f"{file}: the widths of its layers, {widths}, do not follow one another to 1.")

    def __call__(self, features: Float[Tensor, "b width"]) -> Float[Tensor, " b"]:
        x = features.float()
        for weight, bias in self.layers:
            x = F.linear(x, weight.to(x.device), bias.to(x.device))
        return x[:, 0]
