"""What do the digests of a checkpoint cost? A save with them against the same save without, interleaved.

    python benchmarks/checkpoint_digests.py [--mib 400] [--rounds 15] [--out FOLDER]

A save is what a run does: tensors to bytes, files to the disk and flushed, state.json, the folder renamed. The files
are of a run with full weights and AdamW: training.safetensors is four times model.safetensors; together they have
``--mib``.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from xxhash import xxh3_128

from grpaint.run import checkpoint
from grpaint.run.folder import RunFolder
from grpaint.storage import files


class NoDigest:
    """In the place of XXH3-128: computes nothing."""

    def update(self, part: object) -> None:
        pass

    def hexdigest(self) -> str:
        return "0" * 32


def weights(mib: float, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of a network, of 4 MiB each."""
    draw = torch.Generator().manual_seed(seed)
    return {f"layer{n}": torch.randn(1 << 20, generator=draw) for n in range(max(1, round(mib / 4)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=None, help="where to write; a temporary folder if unset")
    args = parser.parse_args()
    contents = {
        "training.safetensors": (weights(0.8 * args.mib, 0), {}),
        "model.safetensors": (weights(0.2 * args.mib, 1), {}),
    }
    state = {"iteration": 1, "best": (0.0, 0), "counts": {}, "pieces": {}, "settings": {}}
    place = Path(tempfile.mkdtemp(dir=args.out))
    run = RunFolder(place)
    run.checkpoints.mkdir()
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(args.rounds + 1):
        for kind in ("without", "with") if number % 2 else ("with", "without"):
            files.xxh3_128 = xxh3_128 if kind == "with" else NoDigest
            start = time.perf_counter()
            run.save(1, lambda folder: checkpoint.write_checkpoint(folder, contents, state))
            if number:  # the first of each warms up
                seconds[kind].append(time.perf_counter() - start)
    shutil.rmtree(place)
    without, with_ = (statistics.median(seconds[kind]) for kind in ("without", "with"))
    ratios = [b / a - 1 for a, b in zip(seconds["without"], seconds["with"], strict=True)]
    print(f"{args.mib:g} MiB, {args.rounds} rounds: without {1000 * without:.1f} ms, with {1000 * with_:.1f} ms")
    print(f"digests: {100 * (with_ / without - 1):+.1f}%; median of the ratios {100 * statistics.median(ratios):+.1f}%")


if __name__ == "__main__":
    main()
