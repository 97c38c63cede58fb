"""The built-in text-to-image model: a small pixel transformer for the embedded world.

Image patches attend to themselves and to the caption. The network emits the clean image, since a patch of 8 x 8 x 3 =
192 values is wider than the model (160) and noise has no structure to compress; the backend converts that to the
velocity of a flow or to the epsilon of a variance-preserving path, and everything above reads it as such.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpaint.backends.adapters import Lora, add_adapter, merged_state
from grpaint.backends.files import check_tensors, read_weights
from grpaint.backends.runtime import Runtime
from grpaint.backends.weights import WeightSets
from grpaint.core.path import FlowPath, Path, Point, VpPath
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Prediction, read
from grpaint.core.rng import Key, noise
from grpaint.scenes.captions import LONGEST, VOCABULARY, tokens
from grpaint.scenes.shapes import SIDE

FLOOR = 0.05  # of sigma, where a velocity or epsilon divides by it
SHIPPED = FilePath(__file__).parent.parent / "recipes"
START = {"velocity": SHIPPED / "scenes/base.safetensors", "epsilon": SHIPPED / "scenes-epsilon/base.safetensors"}


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; the defaults make 2.5 M parameters."""

    width: int = 160
    layers: int = 6
    heads: int = 5
    text_width: int = 96
    text_layers: int = 2
    patch: int = 8


def _sinusoid(level: Tensor, width: int) -> Tensor:
    """Embedding of a noise level in [0, 1]."""
    frequency = torch.exp(torch.arange(width // 2, device=level.device) * (-math.log(1000.0) / (width // 2)))
    angle = 1000 * level[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class Attention(nn.Module):
    """Queries from ``x``; keys and values from ``x`` and a second sequence.

    Written out, since the backward of scaled_dot_product_attention is slow in bf16 on CPUs.
    """

    def __init__(self, width: int, heads: int, text_width: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.text = nn.Linear(text_width, 2 * width, bias=False) if text_width else None
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.text is not None and text is not None:
            text_k, text_v = self.text(text).chunk(2, -1)
            k, v = torch.cat([k, text_k], 1), torch.cat([v, text_v], 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weight = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weight.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


class TextBlock(nn.Module):
    """A pre-norm transformer layer over caption tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention, self.mlp = Attention(width, 4), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class ImageBlock(nn.Module):
    """A transformer layer over patches, modulated by the noise level (one shared table plus its own offsets)."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.attention = Attention(size.width, size.heads, size.text_width)
        self.mlp = Mlp(size.width)
        gates_open = torch.tensor([0.0, 0, 1, 0, 0, 1])
        self.table = nn.Parameter(gates_open[:, None].repeat(1, size.width))

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).unsqueeze(2).unbind(1)
        width = x.shape[-1:]
        x = x + gate1 * self.attention(F.layer_norm(x, width) * (1 + scale1) + shift1, text)
        return x + gate2 * self.mlp(F.layer_norm(x, width) * (1 + scale2) + shift2)


class SceneNet(nn.Module):
    """Noisy images, noise level and caption tokens to clean images ``[b, 3, 32, 32]`` in about [-1, 1]."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.size = size
        grid = SIDE // size.patch
        values = 3 * size.patch**2
        self.words = nn.Embedding(len(VOCABULARY), size.text_width)
        self.word_places = nn.Parameter(torch.randn(LONGEST, size.text_width) * 0.25)
        self.text = nn.Sequential(*(TextBlock(size.text_width) for _ in range(size.text_layers)))
        self.text.append(nn.LayerNorm(size.text_width))
        self.places = nn.Parameter(torch.randn(grid * grid, size.width) * 0.5)
        self.enter, self.leave = nn.Linear(values, size.width), nn.Linear(size.width, values)
        self.level = nn.Sequential(nn.Linear(256, size.width), nn.SiLU())
        self.modulate = nn.Linear(size.width, 6 * size.width)
        self.blocks = nn.ModuleList(ImageBlock(size) for _ in range(size.layers))
        for layer in (self.leave, self.modulate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.words.weight, std=0.5)

    def read(self, numbers: Tensor) -> Tensor:
        """Caption states ``[b, 12, text_width]`` of token numbers."""
        return self.text(self.words(numbers) + self.word_places)

    def forward(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        patch = self.size.patch
        h = self.enter(F.pixel_unshuffle(x, patch).flatten(2).mT) + self.places
        modulation = self.modulate(self.level(_sinusoid(level, 256))).unflatten(1, (6, -1))
        for block in self.blocks:
            h = block(h, text, modulation)
        out = self.leave(F.layer_norm(h, h.shape[-1:]))
        # contiguous: pixel_shuffle keeps a channels-last layout, and mixed layouts make all that follows slow
        return F.pixel_shuffle(out.mT.contiguous().unflatten(2, (SIDE // patch, SIDE // patch)), patch)


@dataclass(frozen=True)
class SceneCondition:
    """Caption tokens, and their states where the text encoder is frozen."""

    tokens: Tensor
    states: Tensor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> Self:
        states = None if self.states is None else self.states[index]
        return type(self)(self.tokens[index], states)


@dataclass(frozen=True)
class Scenes:
    """The ``[model]`` table ``kind = "scenes"``.

    ``start``: a ``.safetensors`` file or checkpoint folder; empty for the shipped base; "random" to begin anew from
    ``init_seed``. ``guidance`` w extrapolates from the empty caption (1 is none). ``batch``: rows of one network call.
    """

    parametrisation: Literal["velocity", "epsilon"] = "velocity"
    start: str = ""
    guidance: float = 1.0
    train_text: bool = False
    lora: Lora | None = None
    batch: int = 512
    init_seed: int = 0

    def __post_init__(self) -> None:
        if not self.guidance >= 0:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    def from_file(self, file: str) -> "Scenes":
        """The same model, starting from weights that a run of it saved; they are whole and serve unguided."""
        return replace(self, start=file, lora=None, train_text=False, guidance=1.0)

    @property
    def path(self) -> Path:
        """The noising path, known without opening weights."""
        if self.parametrisation == "velocity":
            return FlowPath()
        return VpPath(betas="cosine", spacing="trailing", final="one")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return 3, SIDE, SIDE

    def load(self, runtime: Runtime) -> "ScenePolicy":
        """Open the weights.

        Raises:
            CheckpointError: where they are missing, damaged, or of another architecture.
        """
        torch_state = torch.random.get_rng_state()
        try:  # module initialisation reads the global generator; leave it as it was
            torch.manual_seed(self.init_seed)
            net = SceneNet(Architecture())
        finally:
            torch.random.set_rng_state(torch_state)
        if self.start != "random":
            file = FilePath(self.start) if self.start else START[self.parametrisation]
            stored, metadata = read_weights(file)
            check_tensors(file, stored, net.state_dict(), metadata, {"parametrisation": self.parametrisation})
            net.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
        return ScenePolicy(self, net.to(runtime.device), runtime)


class ScenePolicy:
    """The built-in model behind the Policy protocol. Latents are pixels in [-1, 1]."""

    def __init__(self, spec: Scenes, net: SceneNet, runtime: Runtime) -> None:
        self.spec, self.net, self.runtime = spec, net, runtime
        self.path, self.meter, self.guidance = spec.path, Meter(), spec.guidance
        if spec.lora:
            add_adapter(net, spec.lora, ["qkv", "out", "mlp.0", "mlp.2"], within="blocks")
        elif not spec.train_text:
            for module in (net.words, net.text):
                module.requires_grad_(False)
            net.word_places.requires_grad_(False)
        trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.weights = WeightSets(net, trainable, adapters=spec.lora is not None)
        self._text_frozen = bool(spec.lora) or not spec.train_text
        self._empty = self.encode([Prompt("")])

    def encode(self, prompts: Sequence[Prompt]) -> SceneCondition:
        """Captions to tokens, and to frozen states where nothing can change them."""
        numbers = torch.tensor([tokens(prompt.text) for prompt in prompts], device=self.runtime.device)
        if not self._text_frozen:
            return SceneCondition(numbers, None)
        with torch.no_grad(), self.runtime.autocast():
            return SceneCondition(numbers, self.net.read(numbers))

    def encode_images(self, images: Tensor) -> Tensor:
        """[0, 1] to [-1, 1]."""
        return (images * 2 - 1).to(self.runtime.device)

    def decode(self, x0: Tensor) -> Tensor:
        """[-1, 1] to [0, 1], clamped."""
        return ((x0 + 1) / 2).clamp(0, 1)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        """Keyed start or step noise on the model's device."""
        return noise(key, rows, self.spec.sample_shape).to(self.runtime.device)

    def _clean(self, x: Tensor, level: Tensor, cond: SceneCondition) -> Tensor:
        self.meter.forward(len(x))
        with self.runtime.autocast():
            states = self.net.read(cond.tokens) if cond.states is None else cond.states
            return self.net(x, level, states).float()

    def _emit(self, x: Tensor, here: Point, cond: SceneCondition) -> Tensor:
        """The raw output of the network as a flow or diffusion model would give it."""
        level = torch.as_tensor(here.sigma / (here.alpha + here.sigma), dtype=torch.float32, device=x.device)
        level = level.flatten().expand(len(x))
        if self.guidance == 1:
            clean = self._clean(x, level, cond)
        else:
            nothing = self._empty.rows(torch.zeros(len(x), dtype=torch.long, device=x.device))
            conditional, free = self._clean(x, level, cond), self._clean(x, level, nothing)
            clean = free + self.guidance * (conditional - free)
        sigma = torch.as_tensor(here.sigma, device=x.device).clamp(min=FLOOR)
        return (x - clean) / sigma if self.spec.parametrisation == "velocity" else (x - here.alpha * clean) / sigma

    def predict(self, x: Tensor, here: Point, cond: SceneCondition, weights: Weights = "current") -> Prediction:
        """See :class:`grpaint.core.policy.Policy`; rows beyond ``batch`` go in further calls."""
        with self.weights.use(weights):
            parts = [
                self._emit(rows, _part(here, rows, start), cond.rows(torch.arange(start, start + len(rows))))
                for start, rows in _split(x, self.spec.batch)
            ]
        return read(torch.cat(parts), x, here, self.spec.parametrisation)

    def blend(self, into: Weights, keep: float) -> None:
        """See :class:`grpaint.core.policy.Policy`."""
        self.weights.blend(into, keep)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer moves."""
        return iter(self.weights.trainable.values())

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """A whole, stand-alone model, adapters merged, and the header that says what it is."""
        with self.weights.use(weights):
            state = merged_state(self.net)
        return state, {"model": "scenes", "parametrisation": self.spec.parametrisation}


def _split(x: Tensor, batch: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(x), batch):
        yield start, x[start : start + batch]


def _part(here: Point, rows: Tensor, start: int) -> Point:
    """The rows' own place where a point differs between rows."""
    return Point(*(v[start : start + len(rows)] if isinstance(v, Tensor) and v.ndim else v for v in here))
