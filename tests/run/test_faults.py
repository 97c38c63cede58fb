"""What may go wrong while a run goes on: it stops with one line, keeps its last checkpoint, and can be resumed."""

import errno
import json
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny_runs
from grpaint.backends.scenes import ScenePolicy
from grpaint.commands.estimate import levers
from grpaint.recipe.config import open_recipe
from grpaint.run import memory
from tiny_runs import REWARD, TINY, command, lines, status

pytestmark = pytest.mark.usefixtures("small_network")

SETS = [*TINY, REWARD]


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """The same run without a fault."""
    with tiny_runs.folder(tmp_path_factory.mktemp("unharmed")) as here:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    return here / "runs/it"


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def _stopped(end, *words):
    """Exit code 1, one line that says ``words``, status failed, the checkpoint at 2 whole and alone."""
    assert end.code == 1
    assert end.err.startswith("grpaint: ")
    assert end.err.count("\n") == 1
    for word in words:
        assert word in end.err
    assert status(Path("runs/it"))["status"] == "failed"
    assert " ".join(status(Path("runs/it"))["reason"].split()) == " ".join(end.err[len("grpaint: ") :].split())
    assert [path.name for path in Path("runs/it/checkpoints").iterdir()] == ["000002"]


def _resumed(unharmed):
    end = command("train", "--name", "it", "--resume")
    assert (end.code, end.err) == (0, "")
    tiny_runs.same(unharmed, Path("runs/it"))
    assert status(Path("runs/it"))["status"] == "finished"
    assert status(Path("runs/it"))["reason"] is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", ["reward bright raised ValueError", "the first line and a second one"]),
        ("nan", ["reward bright returned nan for 1 images"]),
        ("short", ["reward bright returned shape (11,) for 12 images"]),
    ],
)
def test_a_reward_that_fails_stops_the_run(fault, words, unharmed):
    Path("fault").write_text(fault)
    prompts = open_recipe("flow-grpo-fast", "train", SETS)[0].data.prompts(3, 2, 0)
    row = 5 // 4 if fault == "nan" else 0
    _stopped(command("train", "flow-grpo-fast", "--name", "it", sets=SETS), *words, f'"{prompts[row].text}"')
    assert [line["iteration"] for line in lines(Path("runs/it/metrics.jsonl"))] == [1, 2]
    Path("fault").unlink()
    _resumed(unharmed)


def test_a_disk_that_fills_while_saving_leaves_the_last_checkpoint(unharmed):
    Path("fault").write_text("small files")  # from here on no file may grow past 200 KiB; training.safetensors must
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        end = command("train", "flow-grpo-fast", "--name", "it", sets=SETS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _stopped(end, "000004", "could not be written", "last good checkpoint stays", "--resume")
    Path("fault").unlink()
    _resumed(unharmed)


def test_a_disk_that_is_full_to_the_last_byte(unharmed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("grpaint.storage.atomic.os.fsync", _full_after(2))
        end = command("train", "flow-grpo-fast", "--name", "it", sets=SETS)
        assert end.code == 1
        assert end.err.count("\n") == 1
        assert "No space left on device" in end.err
        assert "--resume" in end.err
    _resumed(unharmed)


def _full_after(checkpoints):
    """An fsync that refuses once that many checkpoints were begun: status and all."""
    fsync = os.fsync

    def full(descriptor):
        if len(list(Path("runs/it/checkpoints").glob("*"))) >= checkpoints:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    return full


def test_a_line_that_cannot_be_written_stops_the_run(unharmed, monkeypatch):
    from grpaint.run.folder import RunFolder

    append = RunFolder.append

    def half(self, name, line):
        if name == "metrics.jsonl" and line["iteration"] == 4:
            with (self.path / name).open("a") as file:
                file.write('{"iteration": 4, "trai')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, name, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", half)
        end = command("train", "flow-grpo-fast", "--name", "it", sets=SETS)
    assert end.code == 1
    assert "No space left on device" in end.err
    assert end.err.count("\n") == 1
    assert status(Path("runs/it"))["status"] == "failed"
    _resumed(unharmed)


ALLOC = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(ALLOC), MemoryError()])
@pytest.mark.parametrize("phase", ["load", "rollout", "reward", "update", "evaluate"])
def test_out_of_memory_names_the_phase_and_what_to_lower(phase, error, monkeypatch):
    def exhausted(*args, **options):
        raise error

    where = {
        "load": "grpaint.backends.scenes.Scenes.load",
        "rollout": "grpaint.run.collect.own_samples",
        "reward": "grpaint.learn.table.RewardTable.total",
        "update": "grpaint.learn.objective.PolicyGradient._term",
        "evaluate": "grpaint.commands.train.judging.judge_prompts",
    }[phase]
    monkeypatch.setattr(where, exhausted)
    monkeypatch.setattr("grpaint.commands.train.command._print_advice", lambda *_: None)  # the next test's
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "advantage.kind=group"])
    assert end.code == 1
    assert end.err == f"grpaint: out of memory in {phase}: lower {memory.LOWER[phase]}. The run can be resumed.\n"
    assert status(Path("runs/it"))["status"] == "failed"


def test_out_of_memory_prints_the_levers_of_the_plan(monkeypatch):
    predict, raised = ScenePolicy.predict, []

    def exhausted(self, x, here, cond, weights="current"):
        if torch.is_grad_enabled() and not raised:
            raised.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(self, x, here, cond, weights)

    monkeypatch.setattr(ScenePolicy, "predict", exhausted)
    every = levers.available_levers
    one = lambda now, ranks: (sets for sets in every(now, ranks) if "objective.minibatch" in str(sets))  # noqa: E731
    monkeypatch.setattr(levers, "available_levers", one)  # the tests of plan pull at all of them
    short = ["plan.steps=2", 'plan.window={kind="prefix",size=1}']  # a plan walks through every step
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "anchor.batch=4", *short])
    assert raised
    assert end.err.startswith("grpaint: out of memory in update")
    assert re.search(r"^  --set objective\.minibatch=\d+ +0\.\d+ GiB, in update$", end.out, re.M), end.out


def test_what_to_lower_are_settings():
    recipe = open_recipe("flow-grpo-fast", "train")[0]
    for advice in memory.LOWER.values():
        for key in [word for word in advice.replace(",", " ").split() if "." in word]:
            node = recipe
            for part in key.split("."):
                node = getattr(node, part)
            assert isinstance(node, int), key


def test_a_run_that_ran_out_of_memory_can_be_resumed(unharmed, monkeypatch):
    predict, seen = ScenePolicy.predict, []

    def exhausted(self, x, here, cond, weights="current"):
        seen.append(torch.is_grad_enabled())
        if sum(seen) == 7:  # two steps and the anchor an iteration: the first step of the third one's update
            raise RuntimeError(ALLOC)
        return predict(self, x, here, cond, weights)

    with monkeypatch.context() as patch:
        patch.setattr(ScenePolicy, "predict", exhausted)
        _stopped(command("train", "flow-grpo-fast", "--name", "it", sets=SETS), "update", "objective.minibatch")
    _resumed(unharmed)


def test_an_error_of_our_own_making_is_not_dressed_up(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("expected a tensor in channels-last memory format")

    monkeypatch.setattr("grpaint.run.collect.own_samples", broken)
    with pytest.raises(RuntimeError, match="channels-last"):
        command("train", "flow-grpo-fast", "--name", "it", sets=SETS)
    assert status(Path("runs/it"))["status"] == "failed"
    assert "channels-last" in status(Path("runs/it"))["reason"]


def test_a_batch_of_flat_groups_moves_nothing_and_is_counted():
    Path("reward.py").write_text("def score(images, prompts):\n    return [1.0] * len(images)\n")
    sets = [*SETS, "train.optimizer.weight_decay=0.5", "train.updates=2"]
    assert command("train", "flow-grpo-fast", "--name", "flat", sets=sets).code == 0
    metrics = lines(Path("runs/flat/metrics.jsonl"))
    for number, line in enumerate(metrics, 1):
        assert line["train/skipped_updates"] == 2
        assert line["advantage/zero_spread_groups"] == 3
        assert line["advantage/abs_mean"] == 0
        assert not [key for key in line if key.startswith("policy/")]
        assert line["cost/model_evaluations"] <= number * 48  # the rollout's
    early, late = (Path(f"runs/flat/checkpoints/{n:06d}") for n in (2, 4))
    assert (early / "model.safetensors").read_bytes() == (late / "model.safetensors").read_bytes()
    assert not [name for name in load_file(late / "training.safetensors") if name.startswith("optimizer")]


def test_a_flat_batch_between_others_keeps_the_optimizer_and_the_average_still():
    Path("fault").write_text("flat")
    sets = [*SETS, "checkpoint.every=1", "checkpoint.keep=9", "train.optimizer.weight_decay=0.5"]
    assert command("train", "flow-grpo-fast", "--name", "once", sets=sets).code == 0
    metrics = lines(Path("runs/once/metrics.jsonl"))
    assert [line.get("train/skipped_updates", 0) for line in metrics] == [0, 0, 1, 0]
    checkpoints = [Path(f"runs/once/checkpoints/{n:06d}") for n in (2, 3, 4)]
    training = [(folder / "training.safetensors").read_bytes() for folder in checkpoints]
    assert training[0] == training[1] != training[2]


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(monkeypatch):
    from grpaint.learn.surrogate import PpoClip

    surrogate = PpoClip.__call__
    monkeypatch.setattr(PpoClip, "__call__", lambda *args: surrogate(*args) * float("inf"))
    assert command("train", "flow-grpo-fast", "--name", "wild", sets=SETS).code == 0
    assert [line["train/nonfinite_updates"] for line in lines(Path("runs/wild/metrics.jsonl"))] == [1] * 4
    early, late = (Path(f"runs/wild/checkpoints/{n:06d}/training.safetensors").read_bytes() for n in (2, 4))
    assert early == late


def test_after_some_in_a_row_the_run_stops_with_the_batch_and_the_place(monkeypatch):
    from grpaint.learn.surrogate import PpoClip

    surrogate = PpoClip.__call__
    monkeypatch.setattr(PpoClip, "__call__", lambda *args: surrogate(*args) * float("inf"))
    end = command("train", "flow-grpo-fast", "--name", "wild", sets=[*SETS, "train.nonfinite=2"])
    assert end.code == 1
    assert "2 updates in a row had a gradient that is not finite, first in the gradient of" in end.err
    assert len(lines(Path("runs/wild/metrics.jsonl"))) == 1  # the iteration that stopped it has none
    files = sorted(Path("runs/wild/nonfinite").iterdir())
    assert [file.name for file in files] == ["000000-0.safetensors", "000001-0.safetensors"]
    with safe_open(files[1], "pt") as stored:
        about = json.loads(stored.metadata()["grpaint"])
        assert stored.get_tensor("x0").shape[0] == len(about["captions"])
    assert about["first"].startswith("the gradient of")


def test_the_first_module_that_is_not_finite_is_named():
    from grpaint.learn.objective import Term
    from grpaint.run.nonfinite import first_module

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    net[1].weight.data[0, 0] = float("inf")
    terms = lambda: iter([Term(net(torch.ones(1, 2)).sum(), {})])  # noqa: E731
    assert first_module(net, terms) == "the output of 1"
    net[1].weight.data[0, 0] = 0.0
    assert first_module(net, terms) == "the loss"
    net[2].weight.grad = torch.full((1, 2), float("nan"))
    assert first_module(net, terms) == "the gradient of 2.weight"
    assert not net[0]._forward_hooks


def test_a_run_resumes_with_smaller_batches():
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "train.iterations=2"]).code == 0
    smaller = ["train.iterations=3", "objective.minibatch=5", "model.batch=7"]
    end = command("train", "--name", "it", "--resume", sets=smaller)
    assert (end.code, end.err) == (0, "")
    assert len(lines(Path("runs/it/metrics.jsonl"))) == 3
