"""What is done about an update whose gradient is not finite: where it began, and the batch that led to it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpaint.learn.objective import Term
from grpaint.rollout.rollout import Rollout
from grpaint.storage.files import write_weights

KEPT = 5  # batches


class _Found(Exception):
    """Ends a forward at the first module whose output is not finite."""


def first_module(module: nn.Module, terms: Callable[[], Iterable[Term]]) -> str:
    """The first module of the forward that gives NaN or infinity; else the first tensor with such a gradient.

    ``terms`` gives the loss's terms once more; they run without gradients, the hooks see every module's output.
    """
    names = {part: name for name, part in module.named_modules()}

    def watch(part: nn.Module, _: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        if any(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all() for t in parts):
            raise _Found(f"the output of {names[part] or type(part).__name__}")

    leaves = [part for part in names if not any(True for _ in part.children())]
    hooks = [part.register_forward_hook(watch) for part in leaves]
    try:
        with torch.no_grad():
            for _ in terms():
                pass
    except _Found as found:
        return str(found)
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss"


def keep(folder: Path, iteration: int, batch: Rollout, where: str) -> Path:
    """Write the batch of an update that was skipped: latents, actions and captions; the first and the last few stay."""
    folder.mkdir(exist_ok=True)
    kept = sorted(folder.iterdir())
    for old in kept[1 : len(kept) - KEPT + 2]:
        old.unlink()
    tensors = {"x0": batch.x0}
    for part in batch.transitions:
        tensors |= {f"{part.step}.{name}": getattr(part, name).clone() for name in ("rows", "x", "x_next", "logp")}
    captions = [batch.prompts[number].text for number in batch.group.tolist()]
    about = {"iteration": iteration, "seed": batch.seed, "first": where, "captions": captions}
    before = [int(file.stem.partition("-")[2]) for file in kept if file.name.startswith(f"{iteration:06d}-")]
    file = folder / f"{iteration:06d}-{max(before, default=-1) + 1}.safetensors"
    write_weights(file, tensors, {"grpaint": json.dumps(about)})
    return file
