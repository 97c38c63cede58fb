"""The common form of every network's output: the clean sample and the noise that it predicts."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.path import Point

Parametrisation = Literal["velocity", "epsilon", "v"]


class Prediction(NamedTuple):
    """Predicted clean sample and noise of ``x = alpha * x0 + sigma * eps``, each ``[b, *latent]``."""

    x0: Tensor
    eps: Tensor


def plus(x: Tensor, factor: float | Tensor, y: Tensor) -> Tensor:
    """Compute ``x + factor * y`` in one pass over memory; a tensor ``factor`` broadcasts."""
    if isinstance(factor, Tensor):
        return torch.addcmul(x, factor, y)
    return torch.add(x, y, alpha=factor)


def read(
    output: Float[Tensor, "b *latent"], x: Float[Tensor, "b *latent"], here: Point, kind: Parametrisation
) -> Prediction:
    """Convert a network's raw output at ``x`` to (x0, eps) with ``alpha * x0 + sigma * eps == x`` for each kind.

    - ``"velocity"``: output = eps - x0 on a flow (alpha + sigma = 1; Liu et al. 2022).
    - ``"epsilon"``: output = eps (Ho et al. 2020); x0 = (x - sigma * eps) / alpha.
    - ``"v"``: output = alpha * eps - sigma * x0 on a variance-preserving path (Salimans & Ho 2022).

    Raises:
        ValueError: if ``kind`` is none of these.
    """
    _, alpha, sigma = here
    match kind:
        case "velocity":
            return Prediction(plus(x, -sigma, output), plus(x, alpha, output))
        case "epsilon":
            return Prediction(plus(x, -sigma, output) / alpha, output)
        case "v":
            return Prediction(plus(alpha * x, -sigma, output), plus(alpha * output, sigma, x))
    raise ValueError(f'a network predicts "velocity", "epsilon" or "v", not {kind!r}')
