"""Any supported diffusers pipeline, trained whole or through LoRA.

grpaint samples; the pipeline provides its text encoders, its network and its VAE. The settings are in
:mod:`grpaint.backends.diffusers_settings`, the policy (casting, guidance, batching) in
:mod:`grpaint.backends.diffusers_policy`, and what differs between pipelines in :mod:`grpaint.backends.families`.
"""

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import nn

from grpaint.backends.adapter_files import is_adapter, load_adapter
from grpaint.backends.adapters import add_adapter
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.backends.diffusers_settings import DiffusersSettings
from grpaint.backends.frozen import add_frozen, read_frozen
from grpaint.backends.pipeline import load_network, open_pipeline, text_encoders
from grpaint.backends.quantize import quantizer
from grpaint.backends.slices import BlankNetwork, blank_network
from grpaint.backends.weights import WeightSets
from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import Runtime

__all__ = ["Diffusers", "DiffusersPolicy"]


@dataclass(frozen=True)
class Diffusers(DiffusersSettings):
    """Any supported pipeline of diffusers, from a folder, a hub or one file: ``[model] kind = "diffusers"``.

    The settings are described at :class:`DiffusersSettings`.
    """

    def load(self, runtime: Runtime) -> DiffusersPolicy:
        """Open the weights.

        Raises:
            MissingExtra: if diffusers and transformers are not installed, or peft if there is an adapter.
            CheckpointError: if weights are missing, damaged, or of another architecture.
        """
        with self.opening():
            return self._open(runtime)

    def _open(self, runtime: Runtime) -> DiffusersPolicy:
        name, family = self.named_family
        for adapter in self.frozen:
            adapter.check()
        quantize = quantizer(self.base_precision, runtime)
        adapter_file = self._adapter_file()
        start = FilePath(self.start) if self.start and adapter_file != FilePath(self.start) else None
        pipe, blank = self._open_pipeline(runtime, start)
        network = getattr(pipe, family.NETWORK)
        if start and not blank and not runtime.fake:
            load_network(start, network, name)
        frozen = [(adapter, read_frozen(adapter, (name, family), pipe)) for adapter in self.frozen]
        quantize(network)
        for key, parameter in network.named_parameters():
            if key.startswith(family.idle(network)):
                parameter.requires_grad_(False)  # no gradient would reach it
        if self.lora:
            with runtime.building():
                add_adapter(network, self.lora, family.TARGETS, idle=family.idle(network))
        for adapter, factors in frozen:
            with runtime.building():
                add_frozen(network, adapter, factors, blank=runtime.fake)
        trainable = self._place(pipe, network, runtime, blank)
        if adapter_file and self.lora and not runtime.fake:
            load_adapter(adapter_file, self.lora, trainable, (name, family), pipe)
        if self.checkpointing:
            network.enable_gradient_checkpointing()
        if self.vae_tiling:
            pipe.vae.enable_tiling()
        adapters_alone = self.lora is not None and not adapter_file
        weights = WeightSets(network, trainable, adapters=adapters_alone, sharding=runtime.sharding)
        if self.frozen:
            weights.switch_frozen([adapter.name for adapter in self.frozen if adapter.training])
        return DiffusersPolicy(self, pipe, weights, runtime)

    def _open_pipeline(self, runtime: Runtime, start: FilePath | None) -> tuple[Any, BlankNetwork | None]:
        """Open the pipeline; a network that processes divide is left blank if each can read its share of the files."""
        name, family = self.named_family
        frozen, blank = self.lora is not None, None
        if runtime.sharding:
            blank = blank_network(self.origin, family.NETWORK, runtime.dtype if frozen else torch.float32)
            blank = blank.starting_from(start, name) if blank and start else blank
        without = text_encoders(self.origin) if self.embeddings == "cache" else ()
        network = blank.module if blank else None
        pipe = open_pipeline(self.origin, family, runtime, frozen=frozen, without=without, network=network)
        family.prepare(getattr(pipe, family.NETWORK), fake=runtime.fake)
        return pipe, blank

    def _place(
        self, pipe: Any, network: nn.Module, runtime: Runtime, blank: BlankNetwork | None
    ) -> dict[str, nn.Parameter]:
        """Move a pipeline to its device, and divide its network if processes share it; return what is trained."""
        if runtime.sharding:
            adapters = [parameter for parameter in network.parameters() if parameter.requires_grad and self.lora]
            if blank:
                blank.empty()
            runtime.sharding.divide(network, adapters, runtime.device)
            if blank:
                runtime.sharding.fill(network, blank.read, runtime.device)
        runtime.place(pipe)
        trainable = {key.replace(".base_layer.", "."): p for key, p in network.named_parameters() if p.requires_grad}
        return runtime.sharding.shares(trainable) if runtime.sharding and not self.lora else trainable

    def check_shard(self, shard: str) -> None:
        """Raise ValueError unless processes can divide the model's parameters as ``processes.shard`` says."""
        if self.base_precision != "full":
            raise ValueError(
                f'processes.shard = "{shard}": parameters of model.base_precision = "{self.base_precision}" cannot be '
                'divided among processes; set it to "full", or use shard = "none"'
            )
        if self.frozen:
            raise ValueError(
                f'processes.shard = "{shard}": processes cannot divide a network with adapters of model.frozen; merge '
                'them into the base, or use shard = "none"'
            )
        if shard == "base" and not self.lora:
            raise ValueError(
                'processes.shard = "base": without model.lora there is no frozen network to divide; set model.lora, or '
                'use shard = "all"'
            )

    def _adapter_file(self) -> FilePath | None:
        """The adapter that training starts from, if the settings name one."""
        file = FilePath(self.adapter or self.start)
        if not (self.adapter or self.start) or not (is_adapter(file) or self.adapter):
            return None
        if not self.lora:
            raise CheckpointError(f"{file}: an adapter, but no model.lora is set. Set it, with the adapter's rank.")
        return file
