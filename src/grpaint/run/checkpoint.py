"""The contents of a checkpoint folder: a stand-alone weight file, the training state, and what JSON holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import CheckpointError
from grpaint.recipe.optim import load_optimizer_sets, optimizer_sets
from grpaint.recipe.pieces import Model
from grpaint.run.state import STATE_FILE, TRAINING_FILE, read_state, sealed
from grpaint.storage.atomic import write_synced
from grpaint.storage.files import (
    WEIGHTS_FILE,
    flatten,
    read_weights,
    unflatten,
    write_weights,
)
from grpaint.storage.layout import read_in_order

WeightFiles = dict[str, tuple[dict[str, Any], dict[str, str]]]  # tensors, or what they are read from when written


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
    whole = {name: policy.weights.whole(weights) for name, weights in sets.items()}
    return {TRAINING_FILE: (flatten(whole), {}), WEIGHTS_FILE: (tensors, header)}


def write_checkpoint(folder: Path, files: WeightFiles, state: Mapping[str, Any]) -> None:
    """Write the weight files and the state into ``folder``, a new one that is renamed when it is complete."""
    facts = {name: write_weights(folder / name, *content) for name, content in files.items()}
    write_synced(folder / STATE_FILE, sealed({**state, "files": facts}))


def help_write(files: WeightFiles) -> None:
    """Take part in gathering the tensors that rank 0 writes, if each rank has a share of them."""
    for tensors, _ in files.values():
        for _tensor in read_in_order(tensors):
            pass


def read_checkpoint(folder: Path, policy: Model, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a whole checkpoint's weights and optimizer state into ``policy`` and ``optimizers``; return its state.

    Raises:
        CheckpointError: it is of another model.
    """
    state = read_state(folder)
    sets = unflatten(read_weights(folder / TRAINING_FILE)[0])
    policy.weights.load(sets)
    own = {name: policy.weights.own(tensors) for name, tensors in sets.items()}
    load_optimizer_sets(optimizers, policy.weights.trainable, own)
    return state


def restore_pieces(folder: Path, pieces: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give the pieces of a recipe the states that they had, by name.

    Raises:
        CheckpointError: the checkpoint is of other pieces.
    """
    for name, piece in pieces.items():
        try:
            piece.load_state_dict(state["pieces"][name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder}: state.json does not hold the state of {name} ({type(error).__name__}: {error})."
            ) from None
