"""Device, precision and threads: the same three settings for every backend."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from grpaint.core.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where networks compute and in what: latents, log-probabilities and masters are fp32 whatever it says."""

    fake: ClassVar[bool] = False  # whether networks have shapes but no contents, so that no weight file is opened
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """Inside, matrix products run in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, self.dtype)

    def building(self) -> AbstractContextManager[object]:
        """Inside it parts are added to a network."""
        return nullcontext()

    def place(self, model: Any) -> None:
        """Move a module or a pipeline to the device."""
        model.to(self.device)


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX)."""
    return "amx" in torch.backends.cpu.get_cpu_capability().lower() or torch.cpu._is_amx_tile_supported()


def resolve(device: Device, precision: Precision) -> Runtime:
    """Turn ``auto`` into what this machine has.

    Raises:
        ConfigError: where a device or precision is asked for that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda": no CUDA device is visible here. Use device = "cpu", or "auto".')
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if where == "cuda" else has_matrix_units()
        return Runtime(where, "bf16" if fast else "fp32")
    return Runtime(where, precision)
