"""``grpaint train`` in processes of its own, begun, watched and ended by tests in the current folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tiny_runs import REWARD, TINY, flags

SETS = [*TINY, REWARD, "evaluate.pictures=0", "train.constant=0"]
IT = Path("runs/it")


def enter(folder, monkeypatch, reward):
    """Work in a folder that has this text as ``reward.py``, and takes temporary files too."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder))
    Path("reward.py").write_text(reward)


def start(*words, sets=(), **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "grpaint", "train", "flow-grpo-fast", "--name", "it", *words, *flags(*SETS, *sets)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_for_lines(running, count=1):
    end = time.monotonic() + 120
    while not (IT / "metrics.jsonl").is_file() or len((IT / "metrics.jsonl").read_text().splitlines()) < count:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def end_of(running, seconds=120):
    errors = running.communicate(timeout=seconds)[1]
    assert not list(Path.cwd().glob("grpaint-*"))  # the folder of the store
    return errors
