"""A model with a closed form, for tests and teaching: its data are Gaussian, so the optimal denoiser is known.

The images of a prompt are x0 ~ N(m, spread^2 I), with m linear in the prompt's embedding and learnable. On any path
x = alpha * x0 + sigma * eps the optimal network is

    r = (x - alpha * m) / (alpha^2 * spread^2 + sigma^2),    x0 = m + alpha * spread^2 * r,    eps = sigma * r.

So an error of a sampler cannot come from the network, and the right update of m is known.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpaint.backends.weights import WeightSets
from grpaint.core.path import FlowPath, Path, Point
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Prediction
from grpaint.core.rng import Key, noise
from grpaint.core.runtime import Runtime


@dataclass(frozen=True)
class GaussianModel:
    """The ``[model]`` table ``kind = "gaussian"``.

    ``spread``: standard deviation of the data around a prompt's mean. ``sample_shape``: channels (1 is grey, or 3),
    height, width. ``width``: length of a prompt's embedding. ``init_seed``: seed of the initial means.
    """

    spread: float = 0.5
    path: Path = field(default_factory=FlowPath)
    sample_shape: tuple[int, int, int] = (1, 4, 4)
    width: int = 8
    init_seed: int = 0

    def __post_init__(self) -> None:
        if not (self.spread > 0 and math.isfinite(self.spread)):
            raise ValueError(f"spread must be positive, got {self.spread}")
        if self.sample_shape[0] not in (1, 3) or min(self.sample_shape) < 1:
            raise ValueError(f"sample_shape must be 1 or 3 channels, height, width; got {self.sample_shape}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    def load(self, runtime: Runtime) -> "GaussianPolicy":
        """Create the model; there are no weights to open."""
        return GaussianPolicy(self, Mean(self).to(runtime.device), runtime)


class Mean(nn.Module):
    """Map prompt embeddings ``[b, width]`` to the means of their data ``[b, c, h, w]``, entries about N(0, 1/4)."""

    def __init__(self, spec: GaussianModel) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * noise(("gaussian", spec.init_seed), range(spec.width), spec.sample_shape))
        self.shift = nn.Parameter(torch.zeros(spec.sample_shape))

    def forward(self, embedding: Tensor) -> Tensor:
        means: Tensor = torch.tensordot(embedding, self.weight, 1) + self.shift
        return means


@dataclass(frozen=True)
class GaussianCondition:
    """Prompt embeddings ``[b, width]`` of norm 1."""

    embedding: Tensor

    def __len__(self) -> int:
        return len(self.embedding)

    def rows(self, index: Tensor) -> Self:
        return type(self)(self.embedding[index])


class GaussianPolicy:
    """The closed form as a ``Policy``. Latents are pixels in about [-1, 1], and it computes in their dtype."""

    def __init__(self, spec: GaussianModel, net: Mean, runtime: Runtime) -> None:
        self.spec, self.net, self.runtime = spec, net, runtime
        self.path, self.meter = spec.path, Meter()
        self.weights = WeightSets(net, dict(net.named_parameters()), adapters=False)

    def encode(self, prompts: Sequence[Prompt]) -> GaussianCondition:
        """Embed each prompt as a random direction keyed by its text: equal texts have equal embeddings."""
        directions = [noise(("prompt", prompt.text), [0], (self.spec.width,)) for prompt in prompts]
        return GaussianCondition(F.normalize(torch.cat(directions), dim=1).to(self.runtime.device))

    def encode_images(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1]; a grey model uses the mean of the three colours."""
        latents = (images * 2 - 1).to(self.runtime.device)
        return latents.mean(1, keepdim=True) if self.spec.sample_shape[0] == 1 else latents

    def decode(self, x0: Tensor) -> Tensor:
        """Map [-1, 1] to [0, 1], clamped; a single channel is repeated as grey."""
        return ((x0 + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        """Keyed start or step noise on the model's device."""
        return noise(key, rows, self.spec.sample_shape).to(self.runtime.device)

    def predict(self, x: Tensor, here: Point, cond: GaussianCondition, weights: Weights = "current") -> Prediction:
        """The exact posterior means of x0 and eps."""
        self.meter.forward(len(x))
        with self.weights.use(weights):
            mean = self.net(cond.embedding).to(x.dtype)
        _, alpha, sigma = here
        variance = self.spec.spread**2
        scaled = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        return Prediction(mean + alpha * variance * scaled, sigma * scaled)

    def blend(self, into: Weights, keep: float, extrapolation: float = 0.0) -> None:
        """See :class:`grpaint.core.policy.Policy`."""
        self.weights.blend(into, keep, extrapolation)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        return iter(self.weights.trainable.values())
