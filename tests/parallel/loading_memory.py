"""What a rank does in the test of loading: it opens a recipe's model while another process samples the memory of all.

As a program it is that process: ``PID ..`` are sampled until its input ends, and the largest sum is printed.
"""

import os
import select
import subprocess
import sys
import time
from pathlib import Path


def proportional_bytes(pid):
    """The resident memory of a process; a page that several processes map counts in equal parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def highest_while_loading(world, settings):
    """The largest sum of all ranks' memory while each opens the model and reads its network once, above that before.

    Before, what loading imports has been imported, and a model without contents has been opened. Reading brings every
    page of a mapped file into memory.
    """
    from grpaint.backends.fake import fake_runtime
    from grpaint.recipe.config import resolve
    from grpaint.run.opening import load_model

    recipe = resolve(settings, "train")[0]
    recipe.model.load(fake_runtime("cpu", recipe.precision))
    import torch.distributed.fsdp
    from accelerate import init_empty_weights

    assert torch.distributed.fsdp
    assert init_empty_weights
    pids = [str(pid) for pid in world.gather_values(os.getpid())]
    before, sampler = sum(world.gather_values(proportional_bytes(os.getpid()))), None
    if world.first:
        sampler = subprocess.Popen(
            [sys.executable, __file__, *pids], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert sampler.stdout.readline() == "begun\n"
    world.gather_values(None)
    policy = load_model(recipe, world)
    for parameter in policy.weights.module.parameters():
        (parameter.detach().to_local() if hasattr(parameter, "to_local") else parameter.detach()).sum()
    world.gather_values(None)
    return int(sampler.communicate()[0]) - before if sampler else 0


def main():
    pids, peak = [int(pid) for pid in sys.argv[1:]], 0
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        peak = max(peak, sum(map(proportional_bytes, pids)))
        time.sleep(0.002)
    sys.stdout.write(str(peak))


if __name__ == "__main__":
    main()
