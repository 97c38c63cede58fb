"""Networks and tokenizers of transformers from files of ours to read: no download, no pickle, every tensor used.

The one file of the rewards that imports transformers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpaint.core.errors import CheckpointError
from grpaint.storage.files import check_tensors


def network(kind: str, config: Any, tensors: Mapping[str, Tensor], file: Path, **options: Any) -> nn.Module:
    """A network of transformers by its class's name, with these weights and no others, in fp32 on the CPU.

    Raises:
        CheckpointError: where a tensor is missing, left over, or of another shape.
    """
    import transformers

    with torch.device("meta"):  # initial weights would take longer than all else
        module: nn.Module = getattr(transformers, kind)(config, **options)
    check_tensors(file, tensors, module.state_dict(), {}, {})
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            assert name == "position_ids", name  # the one thing that is no weight and has a value
            setattr(part, name, torch.arange(buffer.shape[1]).expand(1, -1))
    return module.eval().requires_grad_(False)


def configuration(kind: str, **settings: Any) -> Any:
    """A configuration of transformers by its class's name, from what its ``config.json`` says or would say."""
    import transformers

    return getattr(transformers, kind).from_dict(settings)


class Tokenizer:
    """Captions to numbers ``[b, length]``; what is too long is cut and keeps its end token."""

    def __init__(self, folder: Path, length: int) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever a damaged file makes it raise
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{folder}: no tokenizer can be read there ({reason}). Copy it again.") from error
        self.length = length

    @property
    def end(self) -> int:
        """The number of the end token."""
        return int(self._tokenizer.eos_token_id)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers, and a mask that is 1 where a caption is."""
        made = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return made["input_ids"], made["attention_mask"]

    def too_long(self, texts: Sequence[str]) -> int:
        """How many captions are cut."""
        return sum(len(ids) > self.length for ids in self._tokenizer(list(texts), verbose=False)["input_ids"])
