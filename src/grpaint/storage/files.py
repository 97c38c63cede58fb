"""Opening and writing weight files: safetensors, torch files of tensors alone, and what is wrong with a bad one."""

import hashlib
import json
import os
import pickle  # for the name of an error: nothing is unpickled
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from grpaint.core.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"


def find_weights(path: Path) -> Path:
    """The weight file that a path means: itself, or the one in a checkpoint folder."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def _missing(path: Path, file: Path) -> CheckpointError:
    """Where a path has no weights; the last checkpoint is named where it is a run."""
    kept = sorted(path.glob(f"checkpoints/*/{WEIGHTS_FILE}"))
    way = (
        f" It is a run: name a checkpoint of it, as {kept[-1].parent}."
        if kept
        else " Name a checkpoint's folder, or a file."
    )
    return CheckpointError(f"{path}: no weights there ({file.name} not found).{way}")


def check_start(file: Path) -> tuple[bytes, int]:
    """The first bytes of a weight file of any format, and its size.

    Raises:
        CheckpointError: where it cannot be read, or is a git-lfs pointer or an HTML page.
    """
    try:
        with file.open("rb") as opening:
            start, size = opening.read(256), file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from None
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file}: a git-lfs pointer of {size} bytes, not the weights. Run `git lfs pull` at its origin."
        )
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{file}: an HTML page of {size} bytes, not weights. Download the file (/resolve/, not /blob/)."
        )
    return start, size


def check_weights(file: Path) -> None:
    """Refuse a ``.safetensors`` file that is none, from its first bytes and its size.

    Raises:
        CheckpointError: where it is a git-lfs pointer, an HTML page or cut short, with what was expected and found.
    """
    start, size = check_start(file)
    try:
        with file.open("rb") as opening:
            length = int.from_bytes(start[:8], "little")
            opening.seek(8)
            header = opening.read(length) if length < min(size, 10**8) else b""
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        parts = [part["data_offsets"][1] for name, part in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({size} bytes without a header). It may be cut short: copy it again."
        ) from None
    wanted = 8 + length + max(parts, default=0)
    if size != wanted:
        raise CheckpointError(
            f"{file}: not a whole safetensors file: {size} bytes, its header says {wanted}. It may be cut "
            "short: copy it again."
        )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a ``.safetensors`` file or checkpoint folder.

    Raises:
        CheckpointError: where it is missing, a git-lfs pointer, an HTML page, cut short, or no safetensors file.
    """
    file = find_weights(path)
    if not file.is_file():
        raise _missing(path, file)
    check_weights(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}). Copy it again.") from error


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The names and shapes of a weight file's tensors, and its labels; no tensor is read.

    Raises:
        CheckpointError: as :func:`read_weights`.
    """
    file = find_weights(path)
    if not file.is_file():
        raise _missing(path, file)
    check_weights(file)
    with safe_open(file, "pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return shapes, dict(opened.metadata() or {})


def read_torch(file: Path) -> dict[str, Any]:
    """What a ``.pt`` or ``.pth`` file holds, on the CPU; it can hold tensors and plain values alone.

    Raises:
        CheckpointError: where it is missing, damaged, or would run code.
    """
    check_start(file)
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{file}: not a whole torch file of tensors ({reason}). Copy it again.") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file}: holds a {type(stored).__name__}, a table of tensors was expected.")
    return stored


def check_tensors(
    path: Path,
    stored: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    labels: Mapping[str, str],
) -> None:
    """Refuse weights of another architecture or parametrisation, saying what differs.

    Raises:
        CheckpointError: names, shapes or header labels differ.
    """
    for key, value in labels.items():
        if metadata.get(key, value) != value:
            raise CheckpointError(f'{path}: its {key} is "{metadata[key]}", the recipe\'s is "{value}".')
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shaped = [name for name in wanted.keys() & stored.keys() if wanted[name].shape != stored[name].shape]
    if missing or extra or shaped:
        example = (missing or extra or shaped)[0]
        raise CheckpointError(
            f"{path}: weights of another architecture: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(shaped)} of another shape; for example {example}."
        )


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file through to the disk.

    Raises:
        OSError: where the disk refuses.
    """
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    raw = memoryview(save(plain, dict(metadata or {})))
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(bytes(raw[8:begin]))
    if metadata:  # safetensors writes it in an order of chance, and equal weights make equal files
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(raw[begin:])
        file.flush()
        os.fsync(file.fileno())


def flatten(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Named sets of tensors as one, with ``set/name`` keys."""
    return {f"{group}/{name}": tensor for group, tensors in sets.items() for name, tensor in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of :func:`flatten`."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        out.setdefault(group, {})[name] = tensor
    return out
