"""Device and precision: settings that every backend shares."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Weights

Device = Literal["auto", "cpu", "cuda"]
NetworkPrecision = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Sharding(Protocol):
    """Divides a network's parameters among processes, which then make every call of it together.

    ``padding`` makes the smallest call with a set of weights. ``shapes``: of trained parameters of which each process
    has a share, by name.
    """

    padding: Callable[[Weights], Tensor]
    shapes: Mapping[str, torch.Size]

    def divide(self, network: nn.Module, whole: Collection[nn.Parameter], device: str) -> None:
        """Replace every parameter by this process's share of it, except those in ``whole``."""

    def fill(self, network: nn.Module, read: Callable[[str, slice | None], Tensor | None], device: str) -> None:
        """Give a divided network without contents this process's rows of its tensors, which ``read`` returns."""

    def shares(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return this process's shares of divided parameters, which are trained, as parameters on the same memory."""

    def whole(self, share: Tensor, shape: torch.Size) -> Tensor:
        """Return the tensor of ``shape`` of which every process has a share; all call it."""

    def whole_parameter(self, parameter: Tensor) -> Tensor:
        """Return a parameter or buffer of the divided network as a whole; all processes call it."""

    def part(self, whole: Tensor) -> Tensor:
        """Return this process's share of a tensor."""

    def call(self, forward: Callable[[], Tensor], weights: Weights = "current") -> Tensor:
        """Return what ``forward`` returns, which calls the network once; others make a ``padding`` call if need be.

        ``weights``: the set of trained weights that is in place.
        """


@dataclass(frozen=True)
class Runtime:
    """The device and the precision of network computations.

    Latents, log-probabilities and master weights are fp32, whatever the precision. ``sharding`` divides the network's
    parameters among processes; without it each has all of them.
    """

    fake: ClassVar[bool] = False  # whether networks have shapes but no values, so that no weight file is opened
    device: str = "cpu"
    precision: NetworkPrecision = "fp32"
    sharding: Sharding | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products run in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, self.dtype)

    def building(self) -> AbstractContextManager[object]:
        """Return a context for adding modules to a network."""
        return nullcontext()

    def place(self, model: Any) -> None:
        """Move a module or a pipeline to the device."""
        model.to(self.device)


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX)."""
    return "amx" in torch.backends.cpu.get_cpu_capability().lower() or torch.cpu._is_amx_tile_supported()


def device_name(device: str) -> str:
    """Return the name of a device of this machine: that of the GPU, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def resolve(device: Device, precision: Precision) -> Runtime:
    """Replace ``auto`` by the best device and precision of this machine.

    Raises:
        ConfigError: if ``device`` is "cuda" and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda": no CUDA device is visible here. Use device = "cpu", or "auto".')
    chosen_device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "auto":
        fast_bf16 = torch.cuda.is_bf16_supported() if chosen_device == "cuda" else has_matrix_units()
        return Runtime(chosen_device, "bf16" if fast_bf16 else "fp32")
    return Runtime(chosen_device, precision)
