"""Reading and writing weight files: safetensors, and torch files that hold tensors only."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.text import one_line
from grpaint.storage.atomic import write_atomic
from grpaint.storage.layout import LateTensor, WeightTensors, file_header, read_in_order
from grpaint.storage.reading import parse_object

WEIGHTS_FILE = "model.safetensors"
CHUNK = 1 << 22  # bytes read or written at once


def local_path(text: str) -> Path:
    """Return the path that a setting names; ``~`` or ``~USER`` before it is a home folder if there is such a user."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises where there is no such user


def find_weights(path: Path) -> Path:
    """Return the weight file at a path: the path itself, or the file inside a checkpoint folder."""
    return path / WEIGHTS_FILE if os.path.isdir(path) else path


def numbered(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` whose names are numbers of six digits or more, in the order of the numbers."""
    names = folder.iterdir() if os.path.isdir(folder) else ()
    return sorted(
        (path for path in names if re.fullmatch(r"[0-9]{6}|[1-9][0-9]{6,}", path.name) and path.is_dir()),
        key=lambda path: int(path.name),
    )


def _missing_weights(path: Path, file: Path) -> CheckpointError:
    """Return the error for a path without weights; if the path is a run, it names the run's last checkpoint."""
    checkpoints = [folder for folder in numbered(path / "checkpoints") if (folder / WEIGHTS_FILE).is_file()]
    hint = (
        f" It is a run: name one of its checkpoints, such as {checkpoints[-1]}."
        if checkpoints
        else " Name a checkpoint's folder, or a file."
    )
    return CheckpointError(f"{path}: no weights there ({file.name} not found).{hint}")


def check_start(file: Path) -> tuple[bytes, int]:
    """Check that a weight file of any format is not a placeholder; returns its first 256 bytes and its size in bytes.

    Raises:
        CheckpointError: if it cannot be read, or is a git-lfs pointer or an HTML page.
    """
    try:
        with file.open("rb") as stream:
            start, size = stream.read(256), file.stat().st_size
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
    """Check a ``.safetensors`` file by its header and its size, without reading a tensor.

    Raises:
        CheckpointError: if it is a git-lfs pointer, an HTML page or cut short, with the expected and the actual size.
    """
    start, size = check_start(file)
    if start.startswith(b"PK\3\4"):
        raise CheckpointError(
            f"{file}: a torch file, whatever its name. Load it where it was made, and save it as safetensors."
        )
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(start[:8], "little")
            stream.seek(8)
            header = stream.read(length) if length < min(size, 10**8) else b""
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from None
    try:
        entries = parse_object(header.decode(), str(file))
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ConfigError, ValueError, TypeError, LookupError):
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({size} bytes without a header). It may be cut short: copy it again."
        ) from None
    expected_size = 8 + length + max(ends, default=0)
    if size != expected_size:
        raise CheckpointError(
            f"{file}: not a whole safetensors file: {size} bytes, by its header it has {expected_size}. It may be "
            "cut short: copy it again."
        )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header labels of a ``.safetensors`` file or checkpoint folder.

    Raises:
        CheckpointError: if it is missing, a git-lfs pointer, an HTML page, cut short, or not a safetensors file.
    """
    file = find_weights(path)
    if not os.path.isfile(file):
        raise _missing_weights(path, file)
    check_weights(file)
    with _opened(file) as weights:
        return {name: weights.get_tensor(name) for name in weights.keys()}, dict(weights.metadata() or {})  # noqa: SIM118


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file whose header has been checked; what its own reader refuses is an error of ours."""
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        reason = one_line(str(error), 200)
        raise CheckpointError(f"{file}: not a whole safetensors file ({reason}). Copy it again.") from error


def digest(file: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read the names and shapes of a weight file's tensors, and its header labels; no tensor is read.

    Raises:
        CheckpointError: if the file is missing or bad, as in :func:`read_weights`.
    """
    file = find_weights(path)
    if not os.path.isfile(file):
        raise _missing_weights(path, file)
    check_weights(file)
    with _opened(file) as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        return shapes, dict(weights.metadata() or {})


def read_torch(file: Path) -> dict[str, Any]:
    """Read the dictionary in a ``.pt`` or ``.pth`` file, on the CPU; only tensors and plain values are allowed in it.

    Raises:
        CheckpointError: if it is missing or damaged, would run code, or does not hold a dictionary.
    """
    check_start(file)
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file leads torch's unpickler to any of them
        reason = one_line(str(error), 120) or type(error).__name__
        if "eights only load failed" in reason:  # torch's advice is to open it all the same
            reason = "damaged, or with contents that could run code"
        raise CheckpointError(f"{file}: not a whole torch file of tensors ({reason}). Copy it again.") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file}: holds a {type(stored).__name__}, a table of tensors was expected.")
    return stored


def check_tensors(
    path: Path,
    stored: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    labels: Mapping[str, str],
) -> None:
    """Check that stored weights have the expected tensor names and shapes, and header ``metadata`` fits ``labels``.

    A label that the header does not have is not compared. ``path`` is only named in the error.

    Raises:
        CheckpointError: if names, shapes or header labels differ, with what differs.
    """
    for key, value in labels.items():
        if metadata.get(key, value) != value:
            raise CheckpointError(f'{path}: its {key} is "{metadata[key]}", the recipe\'s is "{value}".')
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    reshaped = [name for name in expected.keys() & stored.keys() if expected[name].shape != stored[name].shape]
    if missing or extra or reshaped:
        example = (missing or extra or reshaped)[0]
        raise CheckpointError(
            f"{path}: weights of another architecture: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(reshaped)} of another shape; for example {example}."
        )


def _chunks(data: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


class FileFacts(TypedDict):
    """What tells later whether a file is still what was written: its size, and the XXH3-128 of its bytes."""

    bytes: int
    xxh3_128: str


def write_weights(
    path: Path, tensors: WeightTensors, metadata: Mapping[str, str] | None = None, *, follow: bool = True
) -> FileFacts:
    """Write a safetensors file atomically, one tensor after another. ``follow``: see ``write_atomic``.

    Equal tensors and labels make equal bytes. Returns its size and digest, computed from the bytes as they are written.

    Raises:
        OSError: if the file cannot be written.
    """
    header = file_header(tensors, metadata or {})
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest, size = xxh3_128(), 0

    def parts() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for tensor in read_in_order(tensors):
            yield from _chunks(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def write(file: BinaryIO) -> None:
        nonlocal size
        for part in parts():
            file.write(part)
            digest.update(part)
            size += len(part)

    write_atomic(path, write, follow=follow)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def file_facts(file: Path) -> FileFacts:
    """Read the size and the digest of a file, as :func:`write_weights` returns them.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = xxh3_128(), 0
    with file.open("rb") as stream:
        while part := stream.read(CHUNK):
            digest.update(part)
            size += len(part)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the XXH3-128 of tensors, their names and their types, for a label in the file that holds them."""
    digest = xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flatten(sets: Mapping[str, WeightTensors]) -> dict[str, Tensor | LateTensor]:
    """Merge named sets of tensors into one dictionary with ``set/name`` keys."""
    return {f"{group}/{name}": tensor for group, tensors in sets.items() for name, tensor in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a dictionary with ``set/name`` keys into its sets: the inverse of :func:`flatten`."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        out.setdefault(group, {})[name] = tensor
    return out
