"""Networks and tokenizers of transformers from local files: no download, no pickle, and every tensor is used.

The only file that builds the scorers' networks with transformers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.core.errors import CheckpointError
from grpaint.core.text import one_line
from grpaint.storage.files import check_tensors


def build_network(kind: str, config: Any, tensors: Mapping[str, Tensor], file: Path, **options: Any) -> nn.Module:
    """Build a network of transformers from its class name, with exactly these weights, in fp32 on the CPU.

    Raises:
        CheckpointError: if a tensor is missing, unexpected, or of another shape.
    """
    import transformers

    with torch.device("meta"):  # drawing initial weights would take longer than everything else
        module: nn.Module = getattr(transformers, kind)(config, **options)
    check_tensors(file, tensors, module.state_dict(), {}, {})
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            assert name == "position_ids", name  # the only buffer with a value that is not in the file
            setattr(part, name, torch.arange(buffer.shape[1]).expand(1, -1))
    return module.eval().requires_grad_(False)


def build_config(kind: str, **settings: Any) -> Any:
    """Build a configuration of transformers from its class name and the settings of its ``config.json``."""
    import transformers

    return getattr(transformers, kind).from_dict(settings)


def open_tokenizer(folder: Path) -> Any:
    """Open a tokenizer of transformers; code that its folder may hold is not run.

    Raises:
        CheckpointError: if it cannot be read, or needs code of its own.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file may raise anything
        reason = one_line(str(error), 160)
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({reason}). Copy it again.") from error


def open_vision_language(folder: Path) -> tuple[Any, Any]:
    """Open a vision-language model of transformers, in fp32 on the CPU, and its processor; only safetensors are read.

    Raises:
        CheckpointError: if a file is missing or damaged, a tensor is missing, or it needs code of its own.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # a damaged file may raise anything
        reason = one_line(str(error), 160)
        raise CheckpointError(f"{folder}: no vision-language model that can be opened ({reason}).") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}. Copy it again.")
    return model.eval().requires_grad_(False), processor


class Tokenizer:
    """Encodes captions as token ids ``[b, length]``; a longer caption is truncated and keeps its end token."""

    def __init__(self, folder: Path, length: int) -> None:
        self._tokenizer, self.length = open_tokenizer(folder), length

    @property
    def end_token(self) -> int:
        """The id of the end token."""
        return int(self._tokenizer.eos_token_id)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids, and a mask ``[b, length]`` that is 1 for the caption and 0 for padding."""
        batch = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]

    def count_too_long(self, texts: Sequence[str]) -> int:
        """How many captions are truncated."""
        return sum(len(ids) > self.length for ids in self._tokenizer(list(texts), verbose=False)["input_ids"])
