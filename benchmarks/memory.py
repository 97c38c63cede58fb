"""The plan's memory by phase against the measured one, on random weights of real sizes; LoRA GRPO.

    python benchmarks/memory.py --size ssd-1b [--pixels 1024] [--plan] [--set key=value ...]

On a GPU the peak of each phase is torch.cuda.max_memory_allocated, without the context; on a CPU it is the process's
own (VmHWM) above what it was before the weights, with large blocks given back at once (MALLOC_* are set for that).
--plan predicts for a GPU and measures nothing: no weights are made. Ratios are measured / predicted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from grpaint.backends.synthetic.pipelines import SIZES, FluxSize, Sd3Size, save, save_settings
from grpaint.commands.estimate import terminal
from grpaint.commands.estimate.forecast import GIB, Forecast, forecast
from grpaint.commands.estimate.rehearsal import in_phase, with_stand_in_rewards
from grpaint.core.runtime import resolve
from grpaint.loops import train
from grpaint.recipe.config import override
from grpaint.run.unsaved import UnsavedLoop

# Blocks of 64 KiB and more are mapped, and so given back when freed: the peak is that of what lives, not of gaps.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ASKED = "--measured-with-malloc"


def table(base: Path, size: str, pixels: int) -> dict[str, Any]:
    """Four prompts x 24 images, ten steps, two of them trained, rank 16, four rows a network call."""
    flow = isinstance(SIZES[size], Sd3Size | FluxSize)
    return {
        "model": {
            "kind": "diffusers",
            "base": str(base),
            "height": pixels,
            "width": pixels,
            "lora": {"rank": 16},
            "checkpointing": True,
            "batch": 4,
            "vae_batch": 1,
        },
        "data": {"kind": "prompts", "train": str(base / "prompts.txt"), "held_out_share": 0.5},
        "plan": {
            "steps": 10,
            "sampler": {"kind": "flow-sde" if flow else "ddim"},
            "window": {"kind": "random", "size": 2, "low": 0, "high": 4},
            "start": {"kind": "shared"},
        },
        "rewards": {"jpeg": {"kind": "jpeg"}},
        "objective": {"kind": "policy-gradient", "minibatch": 4},
        "train": {"iterations": 100, "learning_rate": 1e-4, "prompts": 4, "group_size": 24},
        "evaluate": {"prompts": 16, "guided": []},
    }


def highest(device: str) -> int:
    """Bytes at the highest since :func:`reset`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def reset(device: str) -> None:
    """Forget the highest so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Measured(UnsavedLoop):
    """Two iterations, and the highest memory by phase; the innermost phase counts."""

    def __init__(self, recipe: Any, policy: Any, base: int) -> None:
        super().__init__(recipe, policy)
        self.base, self.peaks, self.inside = base, dict.fromkeys(("rollout", "update"), 0), [""]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self.inside.append(name)
        try:
            yield
        finally:
            self._book()
            self.inside.pop()

    def _book(self) -> None:
        device = self.policy.runtime.device
        name = self.inside[-1]
        self.peaks[name] = max(self.peaks.get(name, 0), highest(device) - self.base)
        reset(device)


def measure(plan: Forecast) -> dict[str, int]:
    """Bytes by phase, of this process."""
    recipe: Any = plan.recipe
    torch.set_num_threads(recipe.threads or 1)
    runtime = resolve(recipe.device, recipe.precision)
    reset(runtime.device)
    base = 0 if runtime.device == "cuda" else highest("cpu")
    policy = recipe.model.load(runtime)
    loop = Measured(recipe, policy, base)
    for name in ("encode", "encode_images", "decode"):
        phase = "decode" if name == "decode" else "encode"
        setattr(policy, name, in_phase(getattr(policy, name), lambda phase=phase: loop.phase(phase)))
    train(with_stand_in_rewards(recipe, call=False), loop)  # type: ignore[arg-type]
    return {name: peak for name, peak in loop.peaks.items() if name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="xl-small", choices=SIZES)
    parser.add_argument("--pixels", type=int, default=0)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument(ASKED, dest="asked", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.plan or args.asked or torch.cuda.is_available()):  # malloc reads its settings when a process begins
        sys.exit(subprocess.run([sys.executable, *sys.argv, ASKED], env=os.environ | MALLOC, check=False).returncode)
    with tempfile.TemporaryDirectory() as place:
        base = (save_settings if args.plan else save)(args.size, Path(place) / args.size)
        (base / "prompts.txt").write_text(
            "".join(f"{n} large red circles above a small blue square\n" for n in range(99))
        )
        settings = override(table(base, args.size, args.pixels or SIZES[args.size].pixels), args.sets)
        plan = forecast(settings, "train", "cuda" if args.plan else None)
        print(f"{args.size}, {args.pixels or SIZES[args.size].pixels} pixels")
        for line in terminal.forecast_lines(plan):
            print(line)
        if args.plan:
            return
        for name, peak in measure(plan).items():
            planned = plan.memory.peaks[name]
            print(f"  {name:10} measured {peak / GIB:.3f}, planned {planned / GIB:.3f} GiB, ratio {peak / planned:.3f}")


if __name__ == "__main__":
    main()
