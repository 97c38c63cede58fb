"""The head of the aesthetic predictor and of ImageReward: five linear layers without activations between them."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from grpaint.core.errors import CheckpointError

LAYERS = (0, 2, 4, 6, 7)  # their numbers in the file; the others are dropout, which is off


class LinearHead:
    """Maps features ``[b, width]`` to scores ``[b]``; ``tensors`` are named ``layers.N.weight`` and ``layers.N.bias``.

    Raises:
        CheckpointError: if a tensor is missing or unexpected, or a layer's width does not fit the layer before it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        names = {f"layers.{number}.{part}" for number in LAYERS for part in ("weight", "bias")}
        if tensors.keys() != names:
            example = sorted(tensors.keys() ^ names)[0]
            raise CheckpointError(f"{file}: not the five linear layers of this head; for example {example}.")
        self.layers = [(tensors[f"layers.{n}.weight"].float(), tensors[f"layers.{n}.bias"].float()) for n in LAYERS]
        widths = [(weight.shape[1], weight.shape[0]) for weight, _ in self.layers]
        if any(layer[1] != following[0] for layer, following in pairwise(widths)) or widths[-1][1] != 1:
            raise CheckpointError(
                f"{file}: the widths of its layers, {widths}, do not lead from one to the next and to 1."
            )

    def __call__(self, features: Float[Tensor, "b width"]) -> Float[Tensor, " b"]:
        x = features.float()
        for weight, bias in self.layers:
            x = F.linear(x, weight.to(x.device), bias.to(x.device))
        return x[:, 0]
