"""The average that a run judges, saves and exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_runs
from grpaint.backends.scenes import Scenes
from grpaint.core.runtime import Runtime
from tiny_runs import REWARD, TINY, command, lines, status

SETS = [*TINY, REWARD, "train.ema=0.5", "evaluate.pictures=0"]

pytestmark = pytest.mark.usefixtures("small_network")


def train(name, *more):
    end = command("train", "flow-grpo-fast", "--name", name, sets=[*SETS, *more])
    assert end.code == 0, end.err


def test_an_extrapolated_average_changes_what_is_judged_and_never_what_is_trained(tmp_path):
    with tiny_runs.folder(tmp_path):
        check_extrapolation()


def check_extrapolation():
    train("plain")
    train("far", "train.extrapolation=0.5")
    plain, far = (load_file(f"runs/{name}/checkpoints/000004/training.safetensors") for name in ("plain", "far"))
    average = [name for name in plain if name.startswith("average/")]
    assert average
    for name in plain.keys() - set(average):
        assert torch.equal(plain[name], far[name]), name
    base = Scenes(start="random").load(Runtime("cpu", "fp32")).export("reference")[0]
    for name in average:
        reference = base[name.removeprefix("average/")]
        torch.testing.assert_close(far[name], reference + 1.5 * (plain[name] - reference), rtol=1e-5, atol=1e-7)
    first, last = (lines(Path(f"runs/{name}/metrics.jsonl"))[-1] for name in ("plain", "far"))
    assert first["reward/bright"] == last["reward/bright"]

    run = Path("runs/far")
    shutil.rmtree(run / "checkpoints/000004")
    (run / "run.json").write_text(json.dumps(status(run) | {"status": "running", "end": None}))
    assert command("train", "--name", "far", "--resume", sets=[]).code == 0
    resumed = load_file("runs/far/checkpoints/000004/training.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in far.items())


@pytest.mark.parametrize("value", ["-0.1", "2.5", "nan"])
def test_an_extrapolation_out_of_range_is_refused_in_a_line(value):
    end = command("train", "flow-grpo-fast", sets=[f"train.extrapolation={value}"])
    assert end.code == 2
    assert "extrapolation" in end.err
    assert end.err.count("\n") == 1
