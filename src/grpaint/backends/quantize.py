"""A frozen network held in 8 or 4 bits: its weights alone, and those of the repeated blocks' linear layers alone."""

import re
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from grpaint.core.errors import ConfigError, MissingExtra
from grpaint.core.runtime import Runtime

BasePrecision = Literal["full", "int8", "nf4"]


def quantizer(precision: BasePrecision, runtime: Runtime) -> Callable[[nn.Module], None]:
    """What replaces a network's weights, layer by layer on the device that computes.

    "int8": a scale a row (torchao); "nf4": 4 bits, a scale for 64 numbers (bitsandbytes; Dettmers et al. 2023).

    Raises:
        MissingExtra: without the library, before anything is opened.
        ConfigError: where the network is to be hollow.
    """
    if runtime.hollow and precision != "full":
        raise ConfigError(
            f'model.base_precision = "{precision}": not planned for yet. Plan with "full", which takes more.'
        )
    try:
        match precision:
            case "full":
                return lambda _network: None
            case "int8":
                from torchao.quantization import Int8WeightOnlyConfig, quantize_

                rows = Int8WeightOnlyConfig()
                return partial(quantize_, config=rows, filter_fn=_in_a_block, device=runtime.device)
            case "nf4":
                from bitsandbytes.nn import Linear4bit

                made = partial(Linear4bit, quant_type="nf4", compute_dtype=runtime.dtype)
                return partial(_replace, made=made, device=runtime.device)
    except ImportError as error:
        raise MissingExtra(f'model.base_precision = "{precision}"', "quant") from error


def _in_a_block(layer: nn.Module, name: str) -> bool:
    """Embeddings of time and text, and the last projection, are small and feel rounding most."""
    return isinstance(layer, nn.Linear) and bool(re.search(r"\.\d+\.", name))


def _replace(network: nn.Module, made: Callable[..., nn.Module], device: str) -> None:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and _in_a_block(layer, name):
            new = made(layer.in_features, layer.out_features, bias=layer.bias is not None)
            new.load_state_dict(layer.state_dict())
            network.set_submodule(name, new.to(device))  # which is when it is quantised
