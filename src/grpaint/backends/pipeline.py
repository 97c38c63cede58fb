"""Opening a stock pipeline, whole or in parts, and the weight files that a run starts from."""

import gc
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from grpaint.backends.adapters import Lora
from grpaint.backends.base_model import BaseModel, open_parts
from grpaint.backends.fake import hollow_parts
from grpaint.backends.families import Family
from grpaint.backends.pipeline_files import check_parts
from grpaint.core.errors import CheckpointError, MissingExtra
from grpaint.core.runtime import Runtime
from grpaint.storage.files import check_tensors, read_header, read_weights


def open_pipeline(
    base: BaseModel, family: Family, runtime: Runtime, *, frozen: bool, without: Collection[str] = ()
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
    dtype = runtime.dtype
    dtypes = {"default": dtype, "vae": torch.float32, family.NETWORK: dtype if frozen else torch.float32}
    index = base.settings.settings("model_index.json")
    left_out = dict.fromkeys(part for part, kind in index.items() if kind == [None, None])  # SD 3 without T5
    absent = family.WITHOUT | left_out | dict.fromkeys(without)
    folder = base.settings.path if runtime.hollow else base.folder
    safe = None if runtime.hollow else check_parts(folder, {*absent, *base.held})
    try:
        made = hollow_parts(folder, absent, dtypes) if runtime.hollow else open_parts(base, family, dtypes, without)
        pipe = getattr(diffusers, family.PIPELINE).from_pretrained(
            folder, dtype=dtypes, local_files_only=True, use_safetensors=safe, **absent, **made
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: diffusers cannot open it as a {family.PIPELINE}: {reason}") from error
    if "scheduler" not in without:
        pipe.scheduler = base.rescheduled(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(key == family.NETWORK)
    return pipe


def text_encoders(base: BaseModel) -> tuple[str, ...]:
    """The names of a pipeline's text encoders."""
    index = base.settings.settings("model_index.json").items()
    return tuple(part for part, kind in index if part.startswith("text_encoder") and isinstance(kind, list) and kind[0])


@contextmanager
def reading(pipe: Any, base: BaseModel, family: Family, runtime: Runtime) -> Iterator[Any]:
    """``pipe`` with its text encoders on its device, opened from ``base`` and freed again where it has none.

    Raises:
        CheckpointError: where their weights are missing or damaged.
    """
    freed = {name for name, part in pipe.components.items() if name.startswith("text_encoder") and part is None}
    wanted = tuple(name for name in text_encoders(base) if name in freed) if freed else ()
    if not wanted:
        yield pipe
        return
    index = base.settings.settings("model_index.json")
    others = tuple(
        part for part, kind in index.items() if isinstance(kind, list) and part not in (*wanted, *family.WITHOUT)
    )
    lent = open_pipeline(base, family, runtime, frozen=True, without=others)
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
    names, _ = read_header(path)
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


def take_whole(file: Path, network: nn.Module, name: str) -> None:
    """Read a whole network of a family.

    Raises:
        CheckpointError: where it is of another family or architecture.
    """
    whole, metadata = read_weights(file)
    check_tensors(file, whole, network.state_dict(), metadata, {"family": name})
    network.load_state_dict(whole)


def take_adapter(file: Path, lora: Lora, trainable: Mapping[str, nn.Parameter], named: tuple[str, Family]) -> None:
    """Give an adapter the weights of a file, at the strength that they had; its alpha / rank may be another than ours.

    Raises:
        CheckpointError: where it is of another family or rank.
    """
    name, family = named
    stored, metadata = read_weights(file)
    wanted = {file_name(family, key): p for key, p in trainable.items()}
    check_tensors(file, stored, wanted, metadata, {"family": name})
    factor = strength(metadata, family) * lora.rank / lora.alpha
    for key, p in wanted.items():
        p.data.copy_(stored[key].float() * (factor if ".lora_B." in key else 1))
