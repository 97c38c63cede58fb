"""The built-in text-to-image model: a small pixel transformer for the embedded world.

Its network outputs the clean image. The policy converts that to the velocity of a flow or to the epsilon of a
variance-preserving path, and the rest of the package uses it like any flow or diffusion model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Literal, Self

import torch
from torch import Tensor, nn

from grpaint.backends.adapters import Lora, add_adapter, merged_state
from grpaint.backends.scene_net import Architecture, SceneNet
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import ConfigError
from grpaint.core.path import FlowPath, Path, Point, VpPath
from grpaint.core.policy import Meter, Prompt, Weights
from grpaint.core.prediction import Prediction, plus, read
from grpaint.core.rng import Key, noise
from grpaint.core.runtime import Runtime
from grpaint.scenes.captions import tokens
from grpaint.scenes.shapes import SIDE
from grpaint.storage.files import check_tensors, read_weights

FLOOR = 0.05  # the least sigma in the denominator of a velocity or epsilon
SHIPPED = FilePath(__file__).parent.parent / "recipes"
START = {"velocity": SHIPPED / "scenes/base.safetensors", "epsilon": SHIPPED / "scenes-epsilon/base.safetensors"}


@dataclass(frozen=True)
class SceneCondition:
    """Caption tokens, and their states if the text encoder is frozen."""

    tokens: Tensor
    states: Tensor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> Self:
        states = None if self.states is None else self.states[index]
        return type(self)(self.tokens[index], states)


@dataclass(frozen=True)
class Scenes:
    """The built-in model, read as a flow or as epsilon: ``[model] kind = "scenes"``.

    ``start``: a ``.safetensors`` file or checkpoint folder; empty for the shipped base; "random" for random weights
    from ``init_seed``. ``guidance`` w extrapolates from the empty caption (1 is no guidance). ``batch``: rows per
    network call. ``train_text``: also train the text layers.
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
        if self.lora and self.train_text:
            raise ValueError("train_text = true trains the text layers whole, and lora freezes them; unset one")

    def from_file(self, file: str) -> "Scenes":
        """The same model, starting from weights that a run saved: a whole network, to be sampled without guidance."""
        return replace(self, start=file, lora=None, train_text=False, guidance=1.0)

    @property
    def path(self) -> Path:
        """The noising path; no weights are opened for it."""
        if self.parametrisation == "velocity":
            return FlowPath()
        return VpPath(betas="cosine", spacing="trailing", final="one")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return 3, SIDE, SIDE

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of an image."""
        return SIDE, SIDE

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError if the model cannot encode images of this size."""
        if (height, width) != self.pixels:
            raise ValueError(
                f"data: images of {width} x {height} pixels; the built-in model's have {SIDE} x {SIDE}. Set "
                f"data.resolution = {SIDE}, without buckets"
            )

    def check_captions(self, captions: Iterable[str]) -> None:
        """Check that the model knows every word of the captions.

        Raises:
            ConfigError: a caption has another word, or too many.
        """
        for caption in captions:
            tokens(caption)

    @property
    def calls(self) -> int:
        """Network calls per prediction."""
        return 1 if self.guidance == 1 else 2

    def graph_bytes(self, runtime: Runtime) -> int:
        """Bytes that autograd stores for the forward of one row, measured on an untrained network."""
        policy = replace(self, start="random", batch=512).load(runtime)
        point = self.path.grid(10)[5]

        def saved_bytes(rows: int) -> int:
            sizes: dict[int, int] = {}  # of the saved tensors, by address

            def record(tensor: Tensor) -> Tensor:
                sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            cond = policy.encode([Prompt("")] * rows)
            with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
                policy.predict(policy.noise(("graph",), range(rows)), point, cond)
            return sum(sizes.values())

        return (saved_bytes(3) - saved_bytes(1)) // 2

    def load(self, runtime: Runtime) -> "ScenePolicy":
        """Open the weights.

        Raises:
            CheckpointError: if they are missing, damaged, or of another architecture.
        """
        torch_state = torch.random.get_rng_state()
        try:  # modules initialise themselves from the global generator, which is restored afterwards
            torch.manual_seed(self.init_seed)
            net = SceneNet(Architecture())
        finally:
            torch.random.set_rng_state(torch_state)
        if self.start != "random" and not runtime.fake:
            file = FilePath(self.start) if self.start else START[self.parametrisation]
            stored, metadata = read_weights(file)
            check_tensors(file, stored, net.state_dict(), metadata, {"parametrisation": self.parametrisation})
            net.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
        return ScenePolicy(self, net, runtime)


class ScenePolicy:
    """The built-in model as a ``Policy``. Latents are pixels in [-1, 1]."""

    def __init__(self, spec: Scenes, net: SceneNet, runtime: Runtime) -> None:
        self.spec, self.net, self.runtime = spec, net, runtime
        self.path, self.meter, self.guidance = spec.path, Meter(), spec.guidance
        if spec.lora:
            with runtime.building():
                add_adapter(net, spec.lora, ["qkv", "out", "mlp.0", "mlp.2"], within="blocks")
        elif not spec.train_text:
            for module in (net.words, net.text):
                module.requires_grad_(False)
            net.word_places.requires_grad_(False)
        runtime.place(net)
        trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.weights = WeightSets(net, trainable, adapters=spec.lora is not None)
        self._text_frozen = bool(spec.lora) or not spec.train_text
        self._empty_caption = self.encode([Prompt("")])

    def encode(self, prompts: Sequence[Prompt]) -> SceneCondition:
        """Tokenise captions; with frozen text layers, also encode them."""
        token_ids = torch.tensor([tokens(prompt.text) for prompt in prompts], device=self.runtime.device)
        if not self._text_frozen:
            return SceneCondition(token_ids, None)
        with torch.no_grad(), self.runtime.autocast():
            return SceneCondition(token_ids, self.net.encode_text(token_ids))

    def encode_images(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1].

        Raises:
            ConfigError: if the images are of another size than the model's.
        """
        try:
            self.spec.check_size(images.shape[-1], images.shape[-2])
        except ValueError as error:
            raise ConfigError(f"{error}.") from error
        return (images * 2 - 1).to(self.runtime.device)

    def decode(self, x0: Tensor) -> Tensor:
        """Map [-1, 1] to [0, 1], clamped."""
        return ((x0 + 1) / 2).clamp(0, 1)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        """Keyed start or step noise on the model's device."""
        return noise(key, rows, self.spec.sample_shape).to(self.runtime.device)

    def _clean(self, x: Tensor, level: Tensor, cond: SceneCondition) -> Tensor:
        self.meter.forward(len(x))
        with self.runtime.autocast():
            states = self.net.encode_text(cond.tokens) if cond.states is None else cond.states
            return self.net(x, level, states).float()

    def _output(self, x: Tensor, here: Point, cond: SceneCondition) -> Tensor:
        """The guided clean image, converted to the velocity or epsilon that a flow or diffusion model would output."""
        level = torch.as_tensor(here.level, dtype=torch.float32, device=x.device)
        level = level.flatten().expand(len(x))
        if self.guidance == 1:
            clean = self._clean(x, level, cond)
        else:
            empty = self._empty_caption.rows(torch.zeros(len(x), dtype=torch.long, device=x.device))
            conditional, unconditional = self._clean(x, level, cond), self._clean(x, level, empty)
            clean = unconditional + self.guidance * (conditional - unconditional)
        sigma = here.sigma.clamp(min=FLOOR) if isinstance(here.sigma, Tensor) else max(here.sigma, FLOOR)
        difference = x - clean if self.spec.parametrisation == "velocity" else plus(x, -here.alpha, clean)
        return difference.div_(sigma)

    def predict(self, x: Tensor, here: Point, cond: SceneCondition, weights: Weights = "current") -> Prediction:
        """See :class:`grpaint.core.policy.Policy`; more than ``batch`` rows are split into several network calls."""
        with self.weights.use(weights):
            outputs = [self._output(*inputs) for inputs in _split(x, here, cond, self.spec.batch)]
        return read(outputs[0] if len(outputs) == 1 else torch.cat(outputs), x, here, self.spec.parametrisation)

    def blend(self, into: Weights, keep: float, extrapolation: float = 0.0) -> None:
        """See :class:`grpaint.core.policy.Policy`."""
        self.weights.blend(into, keep, extrapolation)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        return iter(self.weights.trainable.values())

    def export(self, weights: Weights = "average") -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a whole model, with adapters merged, and the header of its file."""
        with self.weights.use(weights):
            state = merged_state(self.net)
        return state, {"model": "scenes", "parametrisation": self.spec.parametrisation}


def _split(x: Tensor, here: Point, cond: SceneCondition, batch: int) -> Iterator[tuple[Tensor, Point, SceneCondition]]:
    """The inputs of each network call, with at most ``batch`` rows."""
    if len(x) <= batch:
        yield x, here, cond
        return
    for rows in torch.arange(len(x)).split(batch):
        yield x[rows], Point(*(v[rows] if isinstance(v, Tensor) and v.ndim else v for v in here)), cond.rows(rows)
