"""The contents of a checkpoint folder: a stand-alone weight file, the training state, and what JSON holds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import CheckpointError, RunError
from grpaint.recipe.optim import load_optimizer_sets, optimizer_sets
from grpaint.recipe.pieces import Model
from grpaint.storage.atomic import write_synced
from grpaint.storage.files import WEIGHTS_FILE, flatten, read_weights, unflatten, write_weights

TRAINING_FILE, STATE_FILE = "training.safetensors", "state.json"

WeightFiles = dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]


def weight_files(policy: Model, optimizers: Sequence[torch.optim.Optimizer], precision: str) -> WeightFiles:
    """Return the tensors and the header of each weight file of a checkpoint, by file name.

    model.safetensors holds the average weights in ``precision`` ("fp32" or "fp16"), training.safetensors the current,
    average and behaviour weights and the optimizer state. The reference is read again from where the run started.
    """
    tensors, header = policy.export("average")
    if precision == "fp16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    sets = {name: weights for name, weights in policy.weights.tensors().items() if name != "reference"}
    sets |= optimizer_sets(optimizers, policy.weights.trainable)
    return {WEIGHTS_FILE: (tensors, header), TRAINING_FILE: (flatten(sets), {})}


def state_text(state: Mapping[str, Any], pieces: Iterable[str]) -> str:
    """Return a run's state as JSON; ``pieces`` are the names of those that have a state of their own.

    Raises:
        RunError: JSON cannot hold the state of a piece.
    """
    try:
        return json.dumps(state) + "\n"
    except TypeError as error:
        raise RunError(f"{', '.join(pieces)}: a state_dict cannot be kept as JSON ({error}).") from error


def write_checkpoint(folder: Path, files: WeightFiles, state: str) -> None:
    """Write the weight files and the state into ``folder``, a new one that is renamed when it is complete."""
    for name, (tensors, header) in files.items():
        write_weights(folder / name, tensors, header)
    write_synced(folder / STATE_FILE, state)


def read_checkpoint(folder: Path, policy: Model, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a checkpoint's weights and optimizer state into ``policy`` and ``optimizers``; return its JSON state.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    try:
        state = dict(json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / STATE_FILE}: cannot be read ({error}). Remove {folder.name}; the run then resumes from the "
            "checkpoint before it."
        ) from None
    sets = unflatten(read_weights(folder / TRAINING_FILE)[0])
    policy.weights.load(sets)
    load_optimizer_sets(optimizers, policy.weights.trainable, sets)
    return state
