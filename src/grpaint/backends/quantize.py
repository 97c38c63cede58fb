"""Quantise a frozen network to 8 or 4 bits: only the weights of linear layers in its repeated blocks."""

import re
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.core.runtime import Runtime

BasePrecision = Literal["full", "int8", "nf4"]


def quantizer(precision: BasePrecision, runtime: Runtime) -> Callable[[nn.Module], None]:
    """A function that quantises a network in place, layer by layer on the runtime's device; "full" leaves it as it is.

    "int8": one scale per row (torchao); "nf4": 4 bits, one scale per 64 numbers (bitsandbytes; Dettmers et al. 2023).

    Raises:
        MissingExtra: if the library is not installed; raised before any weight is opened.
        ConfigError: if the runtime is fake.
    """
    if runtime.fake and precision != "full":
        raise ConfigError(
            f'model.base_precision = "{precision}": its memory cannot be planned yet. Plan "full", which needs more.'
        )
    try:
        match precision:
            case "full":
                return lambda _network: None
            case "int8":
                from torchao.quantization import Int8WeightOnlyConfig, quantize_

                config = Int8WeightOnlyConfig()
                return partial(quantize_, config=config, filter_fn=_in_a_block, device=runtime.device)
            case "nf4":
                from bitsandbytes.nn import Linear4bit

                linear = partial(Linear4bit, quant_type="nf4", compute_dtype=runtime.dtype)
                return partial(_replace_linear, linear=linear, device=runtime.device)
    except ImportError as error:
        raise MissingExtra(f'model.base_precision = "{precision}"', "quant") from error


def _in_a_block(layer: nn.Module, name: str) -> bool:
    """Whether a linear layer is in a repeated block; those outside are small, and suffer most from rounding."""
    return isinstance(layer, nn.Linear) and bool(re.search(r"\.\d+\.", name))


def _replace_linear(network: nn.Module, linear: Callable[..., nn.Module], device: str) -> None:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and _in_a_block(layer, name):
            new = linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            new.load_state_dict(layer.state_dict())
            network.set_submodule(name, new.to(device))  # the move to the device quantises it
