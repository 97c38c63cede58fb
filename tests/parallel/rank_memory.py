"""What a rank does in the test of memory: it trains two iterations, and measures the highest memory of each phase."""

import runpy
from dataclasses import replace
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
import torch.distributed.fsdp

from grpaint.backends.fake import fake_runtime
from grpaint.commands.estimate.rehearsal import in_phase, with_stand_in_rewards
from grpaint.core.runtime import resolve
from grpaint.loops import train
from grpaint.recipe.config import resolve as resolve_recipe
from grpaint.recipe.settings import Processes

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "memory.py"))


def load_copies(file, device="cpu"):
    """A file's tensors in memory of their own: pages of a mapped file stay in memory until something needs the room."""
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(Path(file).read_bytes()).items()}


def measured(world, settings):
    """Train on random weights; return the bytes of each phase above those before the weights were opened."""
    recipe = resolve_recipe(settings, "train")[0]
    runtime = resolve("cpu", "fp32")
    runtime = replace(runtime, sharding=world.sharding((recipe.processes or Processes()).shard))
    recipe.model.load(fake_runtime("cpu", "fp32"))  # what it imports, and FSDP2, are no part of the model's memory
    assert torch.distributed.fsdp
    BENCHMARK["reset"]("cpu")
    base = BENCHMARK["highest"]("cpu")
    with mock.patch("safetensors.torch.load_file", load_copies):
        policy = recipe.model.load(runtime)
    loop = BENCHMARK["Measured"](recipe, policy, base)
    loop.world = world
    for name in ("encode", "encode_images", "decode"):
        phase = "decode" if name == "decode" else "encode"
        setattr(policy, name, in_phase(getattr(policy, name), lambda phase=phase: loop.phase(phase)))
    train(with_stand_in_rewards(recipe, call=False), loop)
    return {name: peak for name, peak in loop.peaks.items() if name}
