"""A checkpoint's state.json: what JSON holds of a run, a digest of every file, and one of itself.

It is written last, so a checkpoint is whole when its state.json is whole and every file has the size and digest there.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError, RunError
from grpaint.storage.files import WEIGHTS_FILE, FileFacts, check_weights, file_facts, numbered
from grpaint.storage.reading import decode_text, parse_object, read_regular

TRAINING_FILE, STATE_FILE = "training.safetensors", "state.json"
_SEAL = b', "sha256": "'  # the last key: a digest of every byte before it
_SHAPES: dict[str, type | tuple[type, ...]] = {"iteration": int, "best": list, "counts": dict, "pieces": dict}


def check_storable(state: Mapping[str, Any], pieces: Iterable[str]) -> None:
    """Check that JSON can hold a run's state; ``pieces`` are the names of those that have a state of their own.

    Raises:
        RunError: it cannot.
    """
    try:
        json.dumps(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{', '.join(pieces)}: a state_dict cannot be kept as JSON ({error}).") from error


def sealed(state: Mapping[str, Any]) -> bytes:
    """Return a state as the JSON of state.json, which ends with its own SHA-256."""
    text = json.dumps(state).encode()[:-1]
    return text + _SEAL + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def _parse(raw: bytes, file: Path) -> dict[str, Any]:
    """Parse a state.json and check its seal, which files of earlier versions lack.

    Raises:
        CheckpointError: it is damaged.
    """
    text, seal, rest = raw.rpartition(_SEAL)
    if seal and rest != hashlib.sha256(text).hexdigest().encode() + b'"}\n':
        raise CheckpointError(f"{file}: damaged: its SHA-256 is another.")
    try:
        state = parse_object(decode_text(raw, str(file)), str(file))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if "files" in state and not seal:
        raise CheckpointError(f"{file}: damaged: its SHA-256 is missing.")
    for key, kind in _SHAPES.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{file}: damaged: no {key}.")
    if not isinstance(state.get("steps", 0), int):
        raise CheckpointError(f"{file}: damaged: steps is no whole number.")
    files = state.get("files", {})
    if not isinstance(files, dict) or not all(
        isinstance(about, dict) and about.keys() == FileFacts.__annotations__.keys() for about in files.values()
    ):
        raise CheckpointError(f"{file}: damaged: files is not a size and a digest of each.")
    if not all(isinstance(number, int | float) for number in state["counts"].values()):
        raise CheckpointError(f"{file}: damaged: counts holds what is no number.")
    if len(state["best"]) != 2 or not all(isinstance(number, int | float) for number in state["best"]):
        raise CheckpointError(f"{file}: damaged: best is not a score and an iteration.")
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's state, and check that its files are there in their sizes.

    Raises:
        CheckpointError: it is not whole; the message names the file and says why.
    """
    try:
        state = _parse(read_regular(folder / STATE_FILE), folder / STATE_FILE)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if state["iteration"] != int(folder.name):
        raise CheckpointError(f"{folder / STATE_FILE}: of iteration {state['iteration']}, another checkpoint's.")
    if "files" not in state:  # written before there were digests
        for name in (WEIGHTS_FILE, TRAINING_FILE):
            check_weights(folder / name)
    for name, about in state.get("files", {}).items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}.") from None
        if size != about["bytes"]:
            raise CheckpointError(f"{folder / name}: {size} bytes, and {about['bytes']} were written.")
    return state


def check_digest(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Check that a file of a checkpoint is what was written, by the digest in its state.

    Raises:
        CheckpointError: it is not.
    """
    about = state.get("files", {}).get(name)
    try:
        if about and file_facts(folder / name) != about:
            raise CheckpointError(f"{folder / name}: damaged: its XXH3-128 is not that of what was written.")
    except OSError as error:
        raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}.") from None


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state after a check of every byte of its files.

    Raises:
        CheckpointError: it is not whole; the message names the file and says why.
    """
    state = read_state(folder)
    for name in state.get("files", {}):
        check_digest(folder, name, state)
    return state


def last_checkpoint(checkpoints: Path, check: Callable[[Path], object]) -> Path | None:
    """Return the last checkpoint of a folder that passes ``check``, None if there are none at all.

    A logged line names those that are passed over, and says why.

    Raises:
        CheckpointError: there are checkpoints, and none passes.
    """
    damaged: list[str] = []
    for checkpoint in reversed(numbered(checkpoints)):
        try:
            check(checkpoint)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            logging.getLogger(__name__).warning(
                "grpaint: %s Checkpoint %s is taken in its place; the damaged one stays until the run saves that "
                "iteration.",
                reason,
                checkpoint.name,
            )
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"{checkpoints.parent}: none of its checkpoints is whole: {' '.join(damaged)} Nothing was removed; copy a "
            "checkpoint back, or start another run with another --name."
        )
    return None


def check_model(file: Path) -> None:
    """Check a checkpoint's weight file by the digest in the state.json beside it, if there is one.

    A logged line says where that is damaged, and the file was not checked.

    Raises:
        CheckpointError: it is not what was written.
    """
    place = file.parent / STATE_FILE
    if not place.is_file():
        return
    try:
        state = _parse(read_regular(place), place)
    except (ConfigError, CheckpointError) as error:
        logging.getLogger(__name__).warning("grpaint: %s %s was not checked.", error, file.name)
        return
    check_digest(file.parent, file.name, state)
