"""Opening a stock pipeline, whole or in parts, and the weight files that a run starts from."""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from grpaint.backends.families import Family, Folder
from grpaint.backends.hollow import parts
from grpaint.backends.hub import check_parts
from grpaint.backends.runtime import Runtime
from grpaint.core.errors import CheckpointError, MissingExtra
from grpaint.core.files import read_names


def open_pipeline(
    folder: Path,
    family: Family,
    dtype: torch.dtype,
    *,
    frozen: bool,
    without: tuple[str, ...] = (),
    hollow: bool = False,
) -> Any:
    """The pipeline in eval mode, with gradients for its network alone; parts named in ``without`` are None.

    Text encoders and a frozen network are kept in the precision that computes; a trained network and the VAE in fp32.
    A hollow one is made from its settings, its networks on the meta device.

    Raises:
        MissingExtra: without diffusers and transformers.
        CheckpointError: where weights are missing or damaged.
    """
    try:
        import diffusers
        import transformers  # without it diffusers offers stand-ins that fail when used
    except ImportError as error:
        raise MissingExtra("A diffusers model", "diffusers") from error
    diffusers.logging.set_verbosity_error()  # it would print every caption that it cuts, in every iteration
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # it would advise torchvision, which nothing here needs
    transformers.logging.disable_progress_bar()
    dtypes = {"default": dtype, "vae": torch.float32, family.NETWORK: dtype if frozen else torch.float32}
    absent = family.WITHOUT | dict.fromkeys(without)
    safe = None if hollow else check_parts(folder, absent)
    try:
        made = parts(folder, absent, dtypes) if hollow else {}
        pipe = getattr(diffusers, family.PIPELINE).from_pretrained(
            folder, dtype=dtypes, local_files_only=True, use_safetensors=safe, **absent, **made
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: diffusers cannot open it as a {family.PIPELINE}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(key == family.NETWORK)
    return pipe


def text_encoders(folder: Path) -> tuple[str, ...]:
    """The names of a pipeline's text encoders."""
    index = Folder(folder).settings("model_index.json").items()
    return tuple(part for part, kind in index if part.startswith("text_encoder") and isinstance(kind, list) and kind[0])


@contextmanager
def reading(pipe: Any, folder: Path, family: Family, runtime: Runtime) -> Iterator[Any]:
    """``pipe`` with its text encoders on its device, opened from ``folder`` and freed again where it has none.

    Raises:
        CheckpointError: where their weights are missing or damaged.
    """
    wanted = tuple(name for name in text_encoders(folder) if getattr(pipe, name) is None)
    if not wanted:
        yield pipe
        return
    index = Folder(folder).settings("model_index.json")
    others = tuple(
        part for part, kind in index.items() if isinstance(kind, list) and part not in (*wanted, *family.WITHOUT)
    )
    lent = open_pipeline(folder, family, runtime.dtype, frozen=True, without=others, hollow=runtime.hollow)
    runtime.place(lent)
    pipe.register_modules(**{name: getattr(lent, name) for name in wanted})
    del lent
    try:
        yield pipe
    finally:
        pipe.register_modules(**dict.fromkeys(wanted))
        gc.collect()  # what a model holds may refer to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_adapter(path: Path) -> bool:
    """Whether a weight file holds an adapter, by the names of its tensors.

    Raises:
        CheckpointError: where it is one under other programs' names.
    """
    names = read_names(path)
    if any(".lora_down." in key for key in names):
        raise CheckpointError(f"{path}: an adapter under kohya's names; name the run, or its export --for diffusers.")
    return any(".lora_A." in key for key in names)


def file_name(family: Family, name: str) -> str:
    """What diffusers calls an adapter's tensor in a file."""
    return f"{family.NETWORK}.{name.replace('.default.', '.')}"


def strength(metadata: Mapping[str, str], family: Family) -> float:
    """The alpha / rank of an adapter file: 1 unless its header, as diffusers writes it, says otherwise."""
    written = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    alpha, rank = (written.get(f"{family.NETWORK}.{key}", 1) for key in ("lora_alpha", "r"))
    return float(alpha / rank)
