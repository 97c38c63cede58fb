"""Frozen adapters: LoRA files that apply under what is trained, and never change."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpaint.backends.adapter_files import Factors, adapter_file, is_adapter, read_factors, set_factors
from grpaint.backends.adapters import FROZEN, inject
from grpaint.backends.families import Family
from grpaint.core.errors import CheckpointError
from grpaint.storage.files import digest, local_path

NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
ADAPTABLE = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class FrozenAdapter:
    """A table of ``[[model.frozen]]``: a LoRA that applies with ``weight`` to every set of weights, and never changes.

    ``path``: a file, or a folder of peft or diffusers. ``training``: whether it is on in training; one that is not is
    on only where ``deploy.frozen`` names it.
    """

    path: str
    name: str
    weight: float = 1.0
    training: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path must name a LoRA file, or a folder of peft or diffusers")
        if not NAME.fullmatch(self.name):
            raise ValueError(f'name = "{self.name:.60}": must have 1 to 60 letters, digits, _ or -')
        if not math.isfinite(self.weight):
            raise ValueError(f"weight = {self.weight}: must be finite")

    @property
    def file(self) -> Path:
        """The file or folder on this machine."""
        return local_path(self.path)

    def check(self) -> None:
        """Check that the file is a LoRA that can be read, without reading its tensors.

        Raises:
            CheckpointError: if it is missing, damaged, no adapter, or an adapter of another kind.
        """
        if not self.file.exists():
            raise CheckpointError(
                f'model.frozen: "{self.name}": {self.file}: no such file or folder. Download it, and name it in path.'
            )
        if not is_adapter(self.file):
            raise CheckpointError(f'model.frozen: "{self.name}": {self.file}: no LoRA: none of its tensors is of one.')


def frozen_facts(adapters: Sequence[FrozenAdapter], names: Collection[str]) -> list[dict[str, Any]]:
    """Name, weight and SHA-256 of those adapters whose names are in ``names``."""
    on = [adapter for adapter in adapters if adapter.name in names]
    return [{"name": each.name, "weight": each.weight, "sha256": digest(adapter_file(each.file))} for each in on]


def check_frozen_names(adapters: tuple[FrozenAdapter, ...]) -> None:
    """Raise ValueError if two adapters have the same name."""
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'frozen: two adapters have the name "{name}"; give each its own')


def read_frozen(adapter: FrozenAdapter, named_family: tuple[str, Family], pipe: Any) -> Mapping[str, Factors]:
    """Read a frozen adapter for the network of ``pipe``, which has no adapters yet; the factors by layer.

    Raises:
        CheckpointError: if it has layers that the network lacks, or of other shapes.
    """
    factors = read_factors(adapter.file, named_family, pipe)
    layers = dict(getattr(pipe, named_family[1].NETWORK).named_modules())
    unfit = sorted(name for name, own in factors.items() if not _fits(own, layers.get(name)))
    if unfit or not factors:
        example = f"; for example {unfit[0]}" if unfit else ""
        raise CheckpointError(
            f'model.frozen: "{adapter.name}": {adapter.file}: made for another base: {len(unfit)} of its '
            f"{len(factors)} layers are not in this network, or have another shape there{example}."
        )
    return factors


def _fits(factors: Factors, layer: nn.Module | None) -> bool:
    """Whether the factors' product has the shape of the layer's weight."""
    if not isinstance(layer, ADAPTABLE):
        return False
    outputs, *inputs = layer.weight.shape
    rank = len(factors.down)
    return list(factors.down.shape[1:]) == inputs and factors.up.shape[:2] == (outputs, rank)


def add_frozen(network: nn.Module, adapter: FrozenAdapter, factors: Mapping[str, Factors], *, blank: bool) -> None:
    """Add a frozen adapter to a network, in the base's precision; the trained parameters stay those that they were.

    ``blank``: only the shapes count.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    key, rank = FROZEN + adapter.name, max(len(own.down) for own in factors.values())
    inject(network, rank, rank, list(factors), key)
    network.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    if blank:
        return
    with torch.no_grad():
        for name, own in factors.items():
            layer: Any = network.get_submodule(name)
            set_factors(layer.lora_A[key].weight, layer.lora_B[key].weight, own, adapter.weight)
