"""What may go wrong on one of two ranks: the run ends with one line, as in one process, or goes on as one process does.

Faults come from a reward and an objective of the user's.
"""

import json
import math
import time
from pathlib import Path

import pytest
from running import IT, end_of, enter, start
from running import SETS as RUN_SETS
from safetensors import safe_open

from tiny_runs import command, lines, status

FAULTS = """
import os, resource, time
from pathlib import Path
import torch
from grpaint.learn.objective import PolicyGradient

RANK, calls = os.environ.get("RANK"), 0

def fault(name, rank="1"):
    if Path("fault").read_text() == name and RANK == rank:
        Path("time").touch()
        return True

def score(images, prompts):
    global calls
    calls += len(images) in (4, 8, 12)  # the self-test has 2 images, an evaluation 6 or 3 a rank
    scores = images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)
    if calls == 2 and fault("disk", "0"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if calls == 2 and fault("sleep"):
        time.sleep(1000)
    if calls == 2 and Path("fault").read_text() == "uneven" and len(images) in (4, 12):
        scores[-4:] = 1.0  # all of rank 1, the last group of one process
    return scores

class Faulty(PolicyGradient):
    def __call__(self, policy, rollout, advantage, /):
        if rollout.iteration == 1 and fault("memory"):
            torch.empty(2**60, dtype=torch.uint8)
        if rollout.iteration == 1 and fault("weights"):
            with torch.no_grad():
                next(iter(policy.weights.trainable.values())).add_(1e-3)
        has_third = Path("fault").read_text() == "uneven" and int(rollout.numbers.max()) >= 8
        for term in super().__call__(policy, rollout, advantage):
            yield term._replace(loss=term.loss * float("nan")) if rollout.iteration >= 2 and has_third else term
"""
SETS = ["objective.kind=reward.py:Faulty", "checkpoint.every=1", "evaluate.every=20"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch, FAULTS)


@pytest.mark.parametrize(
    ("fault", "sets", "begin", "limit_s"),
    [
        ("memory", [], "out of memory in update: lower objective.minibatch. The run can be resumed.", 0),
        ("weights", ["processes.check_every=1"], "the weights of rank 1 differ from those of the other ranks: ", 0),
        ("disk", [], "runs/it/checkpoints/000002: could not be written (File too large). The last good checkpoint ", 0),
        (
            "sleep",
            ["processes.limit_s=2"],
            "rank 0 waited 2 s in the phase reward for rank 1 (node 0), last in the ",
            2,
        ),
    ],
)
def test_a_fault_of_one_rank_ends_the_run_with_one_line(fault, sets, begin, limit_s):
    Path("fault").write_text(fault)
    running = start("--processes", "2", sets=[*SETS, *sets])
    errors = end_of(running)
    assert time.time() - Path("time").stat().st_mtime < 10 + limit_s
    assert running.returncode == 1
    assert errors.startswith(f"grpaint: {begin}")
    assert errors.count("\n") == 1
    assert (status(IT)["status"], f"grpaint: {status(IT)['reason']}\n") == ("failed", errors)
    assert [folder.name for folder in IT.glob("checkpoints/*")] == ["000001"]


def test_flat_groups_and_nonfinite_gradients_of_one_rank_are_those_of_one_process():
    Path("fault").write_text("uneven")
    ends, metrics, kept = [], [], []
    sets = [*SETS, "train.nonfinite=2"]
    for processes in (1, 2):
        if processes == 1:
            end = command("train", "flow-grpo-fast", "--name", "it", sets=[*RUN_SETS, *sets])
            code, errors = end.code, end.err
        else:
            running = start("--processes", "2", sets=sets)
            errors, code = end_of(running), running.returncode
        assert code == 1
        ends.append(errors)
        metrics.append(lines(IT / "metrics.jsonl"))
        with safe_open(IT / "nonfinite/000003-0.safetensors", "pt") as stored:
            kept.append((json.loads(stored.metadata()["grpaint"])["captions"], stored.get_tensor("x0")))
        IT.rename(f"runs/{processes}")
    assert "2 updates in a row had a gradient that is not finite, first in the gradient of " in ends[0]
    assert ends[1] == ends[0].replace("; the last", " (rank 1); the last", 1)
    assert [line["advantage/zero_spread_groups"] for line in metrics[1]] == [0, 1, 0]
    assert [line.get("train/nonfinite_updates") for line in metrics[1]] == [None, None, 1]
    for one, two in zip(*metrics, strict=True):
        for key in (key for key in one if not key.startswith(("time/", "memory/"))):
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5, nan_ok=True), key
    assert math.isnan(metrics[1][2]["policy/grad_norm"])
    assert kept[1][0] == kept[0][0][8:]  # rank 1's batch, and no other
    assert (kept[1][1] - kept[0][1][8:]).abs().max() <= 1e-4
