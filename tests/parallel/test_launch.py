"""``--processes``: faults, stops and deaths of real processes, each ended as the command line promises."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import FileStore, PrefixStore

from grpaint.backends.scenes import START
from grpaint.parallel.watch import END, PREFIX, STORE
from tiny_runs import command

REWARD = """
import os
def bad(images, prompts):
    if os.environ.get("RANK") == "1":
        raise ValueError("no score today")
    return images.mean((1, 2, 3))
"""
SETS = [
    *("evaluate.prompts=4", "evaluate.probe=4", "evaluate.steps=2", "evaluate.guided=[]", "evaluate.pictures=0"),
    *("threads=1", "train.prompts=4", "model.start=random"),
]


def start(folder, *words, sets=(), environment=None):
    """``grpaint`` in a process of its own."""
    flags = [word for item in (*SETS, *sets) for word in ("--set", item)]
    return subprocess.Popen(
        [sys.executable, "-m", "grpaint", *words, *flags],
        cwd=folder,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(process):
    """The process numbers of a run's ranks, by rank, once they train."""
    ranks = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            names = (status.parent / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        rank = re.search(rb"\0RANK=(\d+)\0", names)
        if parent == process.pid and rank:
            ranks[int(rank[1])] = int(status.parent.name)
    return ranks


def wait_for(condition, process, seconds=120):
    """Wait until ``condition`` holds while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def run_facts(folder, name):
    return json.loads((folder / "runs" / name / "run.json").read_text())


@pytest.mark.slow  # test_ends.py has one as well
def test_an_error_on_one_rank_ends_the_run_with_its_message_once(tmp_path):
    (tmp_path / "bad.py").write_text(REWARD)
    sets = ["rewards.bad.kind=bad.py:bad", "rewards.bad.self_test=false"]
    process = start(tmp_path, "train", "mix-grpo", "--name", "bad", "--processes", "2", sets=sets)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("reward bad raised ValueError: no score today") == 1
    assert "Traceback" not in errors
    facts = run_facts(tmp_path, "bad")
    assert facts["status"] == "failed"
    assert facts["reason"].startswith("reward bad raised ValueError: no score today")
    assert facts["processes"] == 2


def listening_addresses(pids):
    """The local addresses, in hexadecimal, of the TCP sockets on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())) if link.is_symlink() else None
            inodes |= {match[1]} if match else set()
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


def test_a_stop_is_saved_a_death_is_started_again_and_nothing_listens_beyond_loopback(tmp_path):
    sets = ["train.iterations=400", "checkpoint.every=2"]
    process = start(tmp_path, "train", "mix-grpo", "--name", "mine", "--processes", "2", sets=sets)
    checkpoints = tmp_path / "runs/mine/checkpoints"
    wait_for(lambda: checkpoints.is_dir() and any(checkpoints.glob("[0-9]*")), process)
    first = ranks_of(process)
    assert sorted(first) == [0, 1]
    assert listening_addresses([process.pid, *first.values()]) <= {"0100007F"}
    os.kill(first[1], signal.SIGKILL)
    wait_for(lambda: not set(first.values()) & set(ranks_of(process).values()) and len(ranks_of(process)) == 2, process)
    count = len(list(checkpoints.glob("[0-9]*")))
    latest = max(folder.name for folder in checkpoints.glob("[0-9]*")) if count else ""
    wait_for(lambda: max(folder.name for folder in checkpoints.glob("[0-9]*")) > latest, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert errors.count("stopped by SIGTERM after saving; continue with --resume.") == 1
    assert errors.count("stopping after what is under way") == 1  # of the stop; a death's survivors say nothing
    assert run_facts(tmp_path, "mine")["status"] == "interrupted"
    lines = (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, len(lines) + 1))


def test_more_processes_than_prompts_is_one_line(tmp_path):
    words = ["train", "pro-grpo", "--processes", "2"]
    process = start(tmp_path, *words, sets=["train.prompts=1"])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "train.prompts = 1, and groups are compared while they are sampled: too few for 2 processes" in errors
    assert not (tmp_path / "runs/pro-grpo").exists()


def test_a_process_that_is_started_again_after_the_run_has_ended_says_nothing(tmp_path):
    store = PrefixStore(PREFIX, FileStore(str(tmp_path / "store"), 2))
    store.set(END, json.dumps({"message": "the run failed", "code": 1}))
    group = {STORE: str(tmp_path), "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "GRPAINT_JOIN_S": "20"}
    process = start(tmp_path, "train", "mix-grpo", environment=group)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0


def test_one_process_forms_no_group_and_loads_no_engine(tmp_path):
    words = ["grpaint", "train", "mix-grpo", "--set", "train.iterations=1"]
    words += [word for item in SETS for word in ("--set", item)]
    program = f"""
import sys, torch.distributed
from grpaint.cli import main
sys.argv = {words!r}
try:
    main()
except SystemExit as end:
    assert not end.code
names = ("torch.distributed.elastic", "torch.distributed.checkpoint", "grpaint.parallel.group")
assert not [name for name in sys.modules if name.startswith(names)]
assert not torch.distributed.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


PICTURES = ("evaluate.pictures=3", "evaluate.pictures_every=1")


def weights_after(folder, name, *stages):
    """The weights of a run, by name; a stage is the iteration that it goes up to, and its number of processes."""
    sets = [
        "train.schedule=constant",
        "train.warmup=0",
        "model.start=",
        "train.group_size=6",
        "plan.steps=5",
        *PICTURES,
    ]
    for done, processes in stages:
        words = ["train", "mix-grpo", "--name", name]
        words += ["--resume"] if (folder / "runs" / name).exists() else []
        now = [*sets, f"train.iterations={done}"]
        if processes == 1:
            with contextlib.chdir(folder):
                end = command(*words, sets=[*SETS, *now])
            assert end.code == 0, end.err
            continue
        process = start(folder, *words, "--processes", str(processes), sets=now)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    tensors = load_file(folder / f"runs/{name}/checkpoints/{stages[-1][0]:06d}/training.safetensors")
    return {key.removeprefix("current/"): value for key, value in tensors.items() if key.startswith("current/")}


def distance(one, other):
    """The distance of the weights that both have."""
    return torch.stack([(tensor - other[name]).norm() for name, tensor in one.items()]).norm()


def test_a_run_resumed_with_other_numbers_of_processes_is_the_unbroken_one(tmp_path):
    unbroken = weights_after(tmp_path, "unbroken", (3, 1))
    resumed = weights_after(tmp_path, "resumed", (1, 1), (2, 3), (3, 2))
    assert distance(unbroken, resumed) <= 1e-4 * distance(unbroken, load_file(START["velocity"]))
    lines = [json.loads(line) for line in (tmp_path / "runs/resumed/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    check_equal_pictures(*(tmp_path / "runs" / name for name in ("unbroken", "resumed")))


def check_equal_pictures(one, other):
    """The held-out pictures and the last rollout of two runs are alike, and are about the same prompts in one order."""
    files = sorted(file.relative_to(one) for file in one.glob("samples/*/*/*.webp"))
    assert files == sorted(file.relative_to(other) for file in other.glob("samples/*/*/*.webp"))
    assert len([file for file in files if "held-out" in file.parts]) == 4 * 3
    for file in files:
        images = [np.asarray(Image.open(run / file)).astype(int) for run in (one, other)]
        assert np.abs(images[0] - images[1]).max() <= 2, file
    records = [json.loads((run / "samples/rollout/000003/rollout.json").read_text()) for run in (one, other)]
    for mine, other_group in zip(*(record["groups"] for record in records), strict=True):
        assert mine["caption"] == other_group["caption"]
        assert mine["total"] == pytest.approx(other_group["total"], abs=1e-2)
