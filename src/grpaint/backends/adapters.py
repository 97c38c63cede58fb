"""LoRA through peft, for any torch module."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpaint.core.errors import ConfigError, MissingExtra


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in place of full weights. ``targets``: endings of layer names; empty for the model's own."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


def add_adapter(
    module: nn.Module, lora: Lora, targets: Sequence[str], *, within: str = "", idle: tuple[str, ...] = ()
) -> None:
    """Freeze ``module`` and add trainable fp32 adapters to the linear layers whose names end like ``targets``.

    ``within``: only where the name begins so; ``idle``: not where the name begins so, since no gradient reaches it.

    Raises:
        MissingExtra: without peft.
        ConfigError: where no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("LoRA", "lora") from error
    wanted = tuple(lora.targets or targets)
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith(within)
        and name.endswith(wanted)
        and not name.startswith(idle)
    ]
    if not names:
        raise ConfigError(f"model.lora.targets = {list(wanted)}: no linear layer has a name that ends so.")
    module.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, bias="none")
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator: every rank and run starts alike
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(config, module)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft takes over the base's precision


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Inside, the layers are the base's own, as if no adapter had been added; others may come and go there."""
    wrapped = {name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")}
    known = module.__dict__.pop("peft_config", None)
    for name, layer in wrapped.items():
        module.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in wrapped.items():
            module.set_submodule(name, layer)
        if known is not None:
            module.__dict__["peft_config"] = known


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` as if it had never had adapters, their product added to the weights."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if not any(".base_layer." in name for name in state):
        return state
    merged = {name: tensor for name, tensor in state.items() if ".lora_" not in name and ".base_layer." not in name}
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer"):
            for part, tensor in layer.base_layer.state_dict().items():
                added = layer.get_delta_weight("default").detach() if part == "weight" else 0
                merged[f"{name}.{part}"] = tensor + added
    return merged


def kohya(tensors: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Rename an adapter of diffusers' names as kohya's scripts do, for ComfyUI, A1111 and Forge.

    U-Nets: ``lora_unet_..`` with ``lora_down``, ``lora_up`` and ``alpha`` (the rank, since the strength is in the
    second matrix). Blocks keep diffusers' numbers, SDXL's too: A1111 1.10 (``convert_diffusers_name_to_compvis``),
    ComfyUI and Forge (``unet_to_diffusers``) map them to those of the first code. Transformers are read by their
    diffusers names.
    """
    if network != "unet":
        return dict(tensors)
    from diffusers.utils import convert_state_dict_to_kohya

    return dict(convert_state_dict_to_kohya(dict(tensors)))
