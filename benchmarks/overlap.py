"""Does scoring one part while the next is sampled save wall time? The same short run, with overlap and without.

    python benchmarks/overlap.py [--parts N] [--delay SECONDS] [--set key=value ..]

The reward is ``grpaint serve-reward`` in a process of its own that sleeps for ``--delay`` seconds an image, as one that
waits for another machine's GPU would. Prints seconds of an iteration by phase, and whether the numbers are the same.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REWARD = """
import time

def bright(images, prompts):
    time.sleep({delay} * len(images))
    return images.mean((1, 2, 3))
"""
GRPAINT = [sys.executable, "-c", "from grpaint.cli import main; main()"]


@contextlib.contextmanager
def server(delay: float):
    """A slow reward; gives its address and the environment with its token."""
    Path("slow.py").write_text(REWARD.format(delay=delay))
    environment = os.environ | {"SLOW_TOKEN": os.urandom(16).hex()}
    words = ["serve-reward", "slow.py:bright", "--port", "0", "--token-env", "SLOW_TOKEN", "--threads", "1"]
    with subprocess.Popen([*GRPAINT, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            yield re.search(r"http://\S+", process.stdout.readline())[0], environment
        finally:
            process.terminate()


def lines(name: str) -> list[dict]:
    """The iterations of a run."""
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Run both, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), server(arguments.delay) as (url, environment):
        reward = f'rewards={{slow={{kind="remote",urls=["{url}"],token_env="SLOW_TOKEN"}}}}'
        sets = [reward, "train.iterations=6", "evaluate.every=6", "evaluate.prompts=4", "evaluate.guided=[]"]
        sets += ["threads=1", f"train.parts={arguments.parts}", *arguments.sets]
        for overlap in ("true", "false"):
            words = ["train", "flow-grpo-fast", "--name", overlap]
            for item in [*sets, f"train.overlap={overlap}"]:
                words += ["--set", item]
            subprocess.run([*GRPAINT, *words], check=True, env=environment, stdout=subprocess.DEVNULL)
            seen = lines(overlap)[1:]  # the first one warms up
            phases = ("rollout", "reward", "reward_wait", "update")
            means = {name: sum(line[f"time/{name}_s"] for line in seen) / len(seen) for name in phases}
            whole = means["rollout"] + means["reward_wait"] + means["update"]
            summary = ", ".join(f"{name} {seconds:.2f}" for name, seconds in means.items())
            print(f"overlap = {overlap:5}  {whole:.2f} s an iteration ({summary})")
        plain = [[{k: v for k, v in line.items() if "time/" not in k} for line in lines(n)] for n in ("true", "false")]
        print("the same numbers" if plain[0] == plain[1] else "OTHER NUMBERS")


if __name__ == "__main__":
    main()
