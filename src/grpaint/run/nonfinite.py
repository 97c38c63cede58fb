"""Diagnose an update whose gradient is NaN or infinite: name the module where it began, and save the batch."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpaint.learn.objective import Term
from grpaint.parallel.world import World
from grpaint.rollout.rollout import Rollout
from grpaint.run.folder import RunFolder
from grpaint.storage.files import write_weights

MOST_BATCHES = 5
LOSS = "the loss"  # where no module and no gradient is at fault


def first_module(module: nn.Module, terms: Callable[[], Iterable[Term]]) -> str:
    """Describe the first module whose output is NaN or infinite, or else the first tensor with such a gradient.

    ``terms`` computes the loss again, without gradients, while hooks look at the output of every module.
    """
    names, places = {part: name for name, part in module.named_modules()}, list[str]()

    def check(part: nn.Module, _: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        if any(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all() for t in parts):
            # the call goes on: ranks that divide a network must all come to its end
            places.append(f"the output of {names[part] or type(part).__name__}")

    leaves = [part for part in names if not any(True for _ in part.children())]
    hooks = [part.register_forward_hook(check) for part in leaves]
    try:
        with torch.no_grad():
            for _ in terms():
                if places:
                    return places[0]
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return LOSS


def diagnose(
    module: nn.Module,
    terms: Callable[[], Iterable[Term]],
    batch: Rollout,
    run: RunFolder,
    iteration: int,
    world: World,
) -> tuple[str, str]:
    """Find the first place as :func:`first_module` does, and write the batch into the run's folder.

    Of several ranks it is the first whose own gradient is not finite and whose place is known; ranks that divide
    trained weights have one gradient. Returns the place, with the rank if there are
    several, and the file.
    """
    places = world.gather_values([first_module(module, terms), world.finite_gradient])
    suspects = [rank for rank, (_, finite) in enumerate(places) if not finite] or [0]
    rank = next((rank for rank in suspects if places[rank][0] != LOSS), suspects[0])
    where = f"{places[rank][0]}{f' (rank {rank})' if world.size > 1 else ''}"
    tensors = world.gather(_tensors(batch) if rank == world.rank else {})
    captions = world.gather_values([batch.prompts[number].text for number in batch.group.tolist()])[rank]
    about = {"iteration": iteration, "seed": batch.seed, "first": where, "captions": captions}
    file = save_batch(run.nonfinite, iteration, tensors, about) if world.first else None
    return where, world.from_first(str(file))


def _tensors(batch: Rollout) -> dict[str, torch.Tensor]:
    """Return the latents and actions of a batch."""
    tensors = {"x0": batch.x0}
    for part in batch.transitions:
        tensors |= {f"{part.step}.{name}": getattr(part, name).clone() for name in ("rows", "x", "x_next", "logp")}
    return tensors


def save_batch(folder: Path, iteration: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]) -> Path:
    """Write a skipped update's batch, with what there is to say ``about`` it; delete all but the first and last few.

    Returns the file.
    """
    folder.mkdir(exist_ok=True)
    files = sorted(folder.glob("[0-9]*.safetensors"))
    for old in files[1 : len(files) - MOST_BATCHES + 2]:
        old.unlink()
    numbers = [int(file.stem.partition("-")[2]) for file in files if file.name.startswith(f"{iteration:06d}-")]
    file = folder / f"{iteration:06d}-{max(numbers, default=-1) + 1}.safetensors"
    write_weights(file, dict(tensors), {"grpaint": json.dumps(about)})
    return file
