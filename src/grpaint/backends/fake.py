"""Networks with shapes and no contents: the real code runs through them, and nothing is read or computed.

Their tensors are torch's fake tensors, which call themselves CPU tensors: autocast, fused optimizers and the choice of
an attention kernel go as on a CPU. What is not a weight, a latent or an image (row numbers, token ids, masks, noise
levels) stays real, so that code which decides on values still can.
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

from grpaint.backends.families import Folder
from grpaint.core.errors import ConfigError
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
class Hollow(Runtime):
    """A runtime whose networks are hollow; ``target`` is the device that they stand in for."""

    hollow: ClassVar[bool] = True
    target: str = "cpu"
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True), repr=False)

    def of(self, tensor: Tensor) -> Tensor:
        """A hollow tensor like one on the meta device."""
        return FakeTensor(self.mode, tensor, torch.device("cpu"))

    def blank(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A hollow tensor."""
        return self.of(torch.empty(tuple(shape), dtype=dtype, device="meta"))

    def building(self) -> Any:
        """Inside it modules are made on the meta device."""
        return torch.device("meta")

    def place(self, model: Any) -> None:
        """Make a module, or all modules of a pipeline, hollow; weights that are tied stay so."""
        made: dict[int, nn.Parameter] = {}
        for root in [model] if isinstance(model, nn.Module) else _modules(model):
            for module in root.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        made.setdefault(id(weight), nn.Parameter(self._like(weight), weight.requires_grad))
                        module._parameters[name] = made[id(weight)]
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = self._like(buffer)
                for name, value in vars(module).items():  # tables that a module keeps outside its buffers
                    if isinstance(value, Tensor) and value.is_meta:
                        vars(module)[name] = self.of(value)

    def _like(self, tensor: Tensor) -> Tensor:
        return self.of(tensor.detach().to("meta"))


def hollow(device: Device, precision: Precision) -> Hollow:
    """The runtime that plans for these settings; "cuda" may be planned for where there is none.

    Raises:
        ConfigError: where "auto" cannot be resolved.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return Hollow("cpu", "bf16" if precision == "auto" else precision, target="cuda")
    real = resolve(device, precision)
    return Hollow("cpu", real.precision, target=real.device)


def _modules(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def hollow_parts(folder: Path, without: Collection[str], dtypes: dict[str, torch.dtype]) -> dict[str, nn.Module]:
    """The modules that a pipeline's folder names, on the meta device, from their ``config.json`` files.

    ``dtypes``: by part; "default" for the others.
    """
    made = {}
    for name, kind in Folder(folder).settings("model_index.json").items():
        known = isinstance(kind, list) and kind[0] and name not in without
        if known and (folder / name / "config.json").is_file():
            with torch.device("meta"):
                module = _maker(folder / name, *kind)()
            made[name] = module.to(dtypes.get(name, dtypes["default"]))
    return made


def _maker(folder: Path, library: str, name: str) -> Callable[[], nn.Module]:
    import diffusers
    import transformers

    cls = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), name, None)
    if cls is None:
        raise ConfigError(
            f"{folder}: {library}.{name}: only networks of diffusers and transformers can be planned for."
        )
    if library == "diffusers":
        settings = cls.load_config(folder)
        return lambda: cls.from_config(settings)
    config = cls.config_class.from_pretrained(folder)
    return lambda: cls(config)


class _Conduct(TorchFunctionMode):
    """What keeps hollow tensors on the course that real ones on ``target`` would take."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # a mode is off in its own handler, and checkpointing computes forwards in there
            with conducted(self.target):
                return _backward(args[0], kwargs["gradient"])
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and _masks(args):  # how many a real mask picks is known
            args = (args[0], args[1].nonzero(as_tuple=True))
        elif self.target == "cuda" and name in IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(map(_fp32, args))
            kwargs = {key: _fp32(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _backward(root: Tensor, gradient: Tensor | None) -> None:
    """What ``root.backward`` ends in; that itself would ask the mode again."""
    start = torch.ones_like(root) if gradient is None else gradient
    _engine_run_backward((root,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _masks(args: Any) -> bool:
    whole, index = args
    real = isinstance(index, Tensor) and not isinstance(index, FakeTensor)
    return real and index.dtype == torch.bool and isinstance(whole, FakeTensor)


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


@contextmanager
def conducted(target: str) -> Iterator[None]:
    """Inside it hollow networks run as on ``target``; backward passes too."""
    with _Conduct(target):
        yield
