"""A network that processes divide, opened without reading more of its weight files than each process keeps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.backends.base_model import BaseModel
from grpaint.backends.families import PipelineFolder
from grpaint.backends.pipeline_files import listed_shards
from grpaint.backends.pipeline_parts import part_class
from grpaint.storage.files import check_tensors, find_weights, read_header, read_rows

BASE_LAYER = ".base_layer."  # in the name of a weight under an adapter


@dataclass(frozen=True)
class BlankNetwork:
    """A network without contents, and the files that have its tensors, by name.

    Every parameter is a view of one number, so that it takes no memory, and an adapter on it is drawn as usual.
    """

    module: nn.Module
    files: Mapping[str, Path]

    def starting_from(self, file: Path, family: str) -> "BlankNetwork":
        """Return the same network with the weights of a file that a run of it saved.

        Raises:
            CheckpointError: the file is of another family or architecture.
        """
        file = find_weights(file)
        shapes, metadata = read_header(file)
        stored = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        check_tensors(file, stored, self.module.state_dict(), metadata, {"family": family})
        return BlankNetwork(self.module, dict.fromkeys(shapes, file))

    def empty(self) -> None:
        """Move the parameters that are read from files to the meta device; those of adapters stay."""
        for name, module, key, weight in _tensors(self.module):
            if name in self.files and isinstance(weight, nn.Parameter):
                module._parameters[key] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)

    def read(self, name: str, rows: slice | None) -> Tensor | None:
        """Read some rows of a tensor, or all of it; None if no file has it."""
        name = name.replace(BASE_LAYER, ".")
        return read_rows(self.files[name], name, rows) if name in self.files else None


def blank_network(base: BaseModel, part: str, dtype: torch.dtype) -> BlankNetwork | None:
    """Make a pipeline's network from its settings; None unless its folder has its tensors under their names.

    A single file has other names, and so have folders of early releases of diffusers: these are opened whole.
    """
    folder = PipelineFolder(base.folder)
    files = {} if part in base.file_parts else _files(folder.path / part)
    if not files:
        return None
    from accelerate import init_empty_weights

    cls = part_class(folder, part)
    config = cls.load_config(folder.path, subfolder=part, local_files_only=True)
    with init_empty_weights():
        module = cls.from_config(config)
    if {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} != {
        name: shape for file in set(files.values()) for name, shape in read_header(file)[0].items()
    }:
        return None
    fp32 = set(cls._keep_in_fp32_modules or ())
    for name, owner, key, tensor in _tensors(module):
        if name in files and tensor.is_floating_point():
            precision = torch.float32 if fp32.intersection(name.split(".")) else dtype
            if isinstance(tensor, nn.Parameter):
                owner._parameters[key] = nn.Parameter(torch.zeros((), dtype=precision).expand(tensor.shape))
            else:
                owner._buffers[key] = tensor.to(precision)
    return BlankNetwork(module, files)


def _files(folder: Path) -> dict[str, Path]:
    """Return the weight files of a part's folder by the names of their tensors; as in diffusers an index goes first."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    shard_index = folder / f"{whole.name}.index.json"
    files = [folder / name for name in listed_shards(shard_index)] if shard_index.is_file() else [whole]
    return {name: file for file in files if file.is_file() for name in read_header(file)[0]}


def _tensors(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Yield each parameter and buffer: its name without an adapter's marks, its module, its key there, and itself."""
    for prefix, owner in module.named_modules():
        for key, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                yield f"{prefix}.{key}".lstrip(".").replace(BASE_LAYER, "."), owner, key, tensor
