"""LoRA for any torch module, through peft."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpaint.core.bounds import check_range
from grpaint.core.errors import ConfigError, MissingExtra

TRAINED = "default"  # the name of the trained adapter in peft's layers
FROZEN = "frozen_"  # what stands there before the name of a frozen one
SECOND_FACTOR = ".lora_B."  # in the name of the factor of an adapter that begins at zero
MOST_RANK = 16_384  # wider than any layer of the supported networks


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of full weights. ``targets``: endings of layer names; empty for the model's default."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, 1, MOST_RANK, "rank")


def add_adapter(
    module: nn.Module, lora: Lora, targets: Sequence[str], *, within: str = "", idle: tuple[str, ...] = ()
) -> None:
    """Freeze ``module`` and add trainable fp32 adapters to the linear layers whose names end with one of ``targets``.

    ``lora.targets`` replaces ``targets`` if it is not empty. ``within``: a prefix that the names must have; ``idle``:
    prefixes of layers that are left out, since no gradient reaches them.

    Raises:
        MissingExtra: if peft is not installed.
        ConfigError: if no layer has such a name.
    """
    endings = tuple(lora.targets or targets)
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith(within)
        and name.endswith(endings)
        and not name.startswith(idle)
    ]
    if not names:
        raise ConfigError(f"model.lora.targets = {list(endings)}: no linear layer has a name with such an ending.")
    module.requires_grad_(False)
    inject(module, lora.rank, lora.alpha, names, TRAINED)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft gave it the base's precision


def inject(module: nn.Module, rank: int, alpha: float, layers: Sequence[str], name: str) -> None:
    """Add a peft adapter without effect to ``layers`` of ``module``; all its other parameters are frozen.

    Raises:
        MissingExtra: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("LoRA", "lora") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(layers), bias="none")
    # peft draws from the global generator, and every rank and run must draw alike
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(0)
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant here
        inject_adapter_in_model(config, module, name)


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Inside the block, ``module`` has its original layers, as if no adapter had been added.

    Other adapters may be loaded and unloaded there.
    """
    adapted_layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")}
    peft_config = module.__dict__.pop("peft_config", None)
    for name, layer in adapted_layers.items():
        module.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in adapted_layers.items():
            module.set_submodule(name, layer)
        if peft_config is not None:
            module.__dict__["peft_config"] = peft_config


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``module`` without adapters: the products of those that are on are added to the weights."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if not any(".base_layer." in name for name in state):
        return state
    merged = {name: tensor for name, tensor in state.items() if ".lora_" not in name and ".base_layer." not in name}
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer"):
            merged |= {f"{name}.{part}": tensor.detach() for part, tensor in layer.base_layer.state_dict().items()}
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    change = layer.get_delta_weight(adapter).detach()
                    merged[f"{name}.weight"] = merged[f"{name}.weight"] + change
    return merged


def kohya(tensors: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Rename a LoRA's tensors from diffusers' to kohya's names, for ComfyUI, A1111 and Forge.

    U-Nets: ``lora_unet_..`` with ``lora_down``, ``lora_up`` and ``alpha``; alpha is the rank, because ``lora_up``
    already includes the scale. Blocks keep diffusers' numbers, SDXL's too: A1111 1.10
    (``convert_diffusers_name_to_compvis``), ComfyUI and Forge (``unet_to_diffusers``) map them to the original
    (CompVis, SGM) numbers. LoRAs of transformers are returned unchanged.
    """
    if network != "unet":
        return dict(tensors)
    from diffusers.utils import convert_state_dict_to_kohya

    return dict(convert_state_dict_to_kohya(dict(tensors)))
