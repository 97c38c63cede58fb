"""Fake networks, with shapes but no contents: the real code runs through them, and nothing is read or computed.

Their tensors are torch's fake tensors on the CPU device: autocast, fused optimizers and the choice of an attention
kernel work as on a CPU. Only weights, latents and images are fake; row numbers, token ids, masks and noise levels stay
real, since code branches on their values.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from grpaint.backends.families import PipelineFolder
from grpaint.backends.pipeline_parts import listed_parts, part_class
from grpaint.core.runtime import Device, Precision, Runtime, resolve

# What CUDA's autocast computes in fp32 and the CPU's does not: https://pytorch.org/docs/stable/amp.html
IN_FP32 = frozenset(
    (
        *("cosine_similarity", "cumprod", "cumsum", "dist", "exp", "expm1", "group_norm", "l1_loss", "layer_norm"),
        *("log", "log10", "log1p", "log2", "log_softmax", "mse_loss", "norm", "normalize", "pow", "prod"),
        *("reciprocal", "renorm", "rms_norm", "rsqrt", "smooth_l1_loss", "softmax", "softplus", "sum"),
    )
)


@dataclass(frozen=True)
class FakeRuntime(Runtime):
    """A runtime with fake networks; ``target`` is the device that they imitate."""

    fake: ClassVar[bool] = True
    target: str = "cpu"
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True), repr=False)

    def blank(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A fake tensor of this shape."""
        return self._from_meta(torch.empty(tuple(shape), dtype=dtype, device="meta"))

    def building(self) -> Any:
        """Inside the block, modules are made on the meta device."""
        return torch.device("meta")

    def place(self, model: Any) -> None:
        """Replace the tensors of a module, or of all modules of a pipeline, by fake ones; tied weights stay tied."""
        parameters: dict[int, nn.Parameter] = {}  # by the id of the weight that each replaces
        for root in [model] if isinstance(model, nn.Module) else _modules(model):
            for module in root.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        parameters.setdefault(id(weight), nn.Parameter(self._fake_like(weight), weight.requires_grad))
                        module._parameters[name] = parameters[id(weight)]
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = self._fake_like(buffer)
                for name, value in vars(module).items():  # tables that a module keeps outside its buffers
                    if isinstance(value, Tensor) and value.is_meta:
                        vars(module)[name] = self._from_meta(value)
                    if isinstance(value, list):
                        is_table = (isinstance(item, Tensor) and item.is_meta for item in value)
                        tables = zip(value, is_table, strict=True)
                        vars(module)[name] = [self._from_meta(item) if table else item for item, table in tables]

    def _from_meta(self, tensor: Tensor) -> Tensor:
        return FakeTensor(self.mode, tensor, torch.device("cpu"))

    def _fake_like(self, tensor: Tensor) -> Tensor:
        return self._from_meta(tensor.detach().to("meta"))


def fake_runtime(device: Device, precision: Precision) -> FakeRuntime:
    """The fake runtime for these settings; "cuda" works on a machine without CUDA, too.

    Raises:
        ConfigError: if "auto" cannot be resolved.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return FakeRuntime("cpu", "bf16" if precision == "auto" else precision, target="cuda")
    real = resolve(device, precision)
    return FakeRuntime("cpu", real.precision, target=real.device)


def _modules(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def meta_modules(folder: Path, without: Collection[str], dtypes: dict[str, torch.dtype]) -> dict[str, nn.Module]:
    """A pipeline's modules on the meta device, made from their ``config.json`` files, except those in ``without``.

    ``dtypes``: by part, "default" for the others.
    """
    modules = {}
    for name in listed_parts(PipelineFolder(folder), without):
        if (folder / name / "config.json").is_file():
            with torch.device("meta"):
                module = _constructor(PipelineFolder(folder), name)()
            modules[name] = module.to(dtypes.get(name, dtypes["default"]))
    return modules


def _constructor(folder: PipelineFolder, part: str) -> Callable[[], nn.Module]:
    cls = part_class(folder, part)
    place = folder.path / part
    if hasattr(cls, "load_config"):  # of diffusers
        settings = cls.load_config(place)
        return lambda: cls.from_config(settings)
    config = cls.config_class.from_pretrained(place)
    return lambda: cls(config)


class _DeviceEmulation(TorchFunctionMode):
    """Make calls on fake tensors take the same code paths and dtypes as real tensors on ``target``."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # a mode is off in its own handler, and checkpointing runs forwards inside it
            with emulate_device(self.target):
                return _backward(args[0], kwargs["gradient"])
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and _is_real_mask(args):  # the number of rows that a real mask selects is known
            args = (args[0], args[1].nonzero(as_tuple=True))
        elif self.target == "cuda" and name in IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(map(_fp32, args))
            kwargs = {key: _fp32(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _backward(root: Tensor, gradient: Tensor | None) -> None:
    """Run backward as ``root.backward`` does internally; calling that itself would enter the mode again."""
    start = torch.ones_like(root) if gradient is None else gradient
    _engine_run_backward((root,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _is_real_mask(args: Any) -> bool:
    """Whether ``args`` are those of a fake tensor indexed by a real boolean mask."""
    indexed, index = args
    real = isinstance(index, Tensor) and not isinstance(index, FakeTensor)
    return real and index.dtype == torch.bool and isinstance(indexed, FakeTensor)


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


@contextmanager
def emulate_device(target: str) -> Iterator[None]:
    """Inside the block, fake networks run as they would on ``target``, also in backward passes."""
    with _DeviceEmulation(target):
        yield
