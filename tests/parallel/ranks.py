"""Run a function in several real processes that exchange over gloo: ``run_ranks(2, "test_judge:lines", 5)``.

As a program it is one of these processes: ``RANK SIZE FOLDER``.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from grpaint.parallel.group import Group, Place
from grpaint.parallel.world import ONE

HERE = Path(__file__).parent
WAIT_S = 300


def run_ranks(size, function_path, *arguments, wait_s=WAIT_S):
    """Return what ``MODULE:FUNCTION`` returns for ``(world, *arguments)`` on every rank, in order, through JSON.

    Modules of this folder and of ``tests`` can be imported. An error on a rank stops the others.
    """
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "call.json").write_text(json.dumps([function_path, arguments]))
        errors = [(folder / f"{rank}.err").open("w") for rank in range(size)]
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(size), name], env=os.environ | settings, stderr=file
            )
            for rank, file in enumerate(errors)
        ]
        try:
            _wait(ranks, wait_s)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
            for file in errors:
                file.close()
        assert not any(r.returncode for r in ranks), "\n".join((folder / f"{n}.err").read_text() for n in range(size))
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _wait(ranks, wait_s):
    """Wait until all have ended, or for a second after one has failed, in which others may print why."""
    end = time.monotonic() + wait_s
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        if any(rank.poll() for rank in ranks):
            end = min(end, time.monotonic() + 1)
        time.sleep(0.02)


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    world = ONE
    if size > 1:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size)
        world = Group(Place(rank, size, rank, size, 0, 1), dist.PrefixStore("own", store))
        world.limit(WAIT_S)
    path, arguments = json.loads((folder / "call.json").read_text())
    module, _, function = path.partition(":")
    result = getattr(importlib.import_module(module), function)(world, *arguments)
    (folder / f"{rank}.json").write_text(json.dumps(result))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
