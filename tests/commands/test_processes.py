"""What ``--processes auto`` stands for."""

import sys

import pytest

from grpaint.commands import processes
from grpaint.commands.processes import INTERPRETER, free_memory, training_processes

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "memory", "prompts", "count"),
    [(8, 100 * GIB, 6, 6), (4, 100 * GIB, 6, 4), (8, 5 * INTERPRETER, 6, 3), (1, GIB, 6, 1)],
)
def test_auto_is_what_prompts_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, prompts: int, count: int
) -> None:
    monkeypatch.setattr(processes, "device_count", lambda: cores)
    monkeypatch.setattr(processes, "free_memory", lambda: memory)
    # a process of awm needs half a GiB and a quarter more by its prediction
    assert training_processes("train", "awm", [f"train.prompts={prompts}"]) == count


def test_auto_takes_no_more_processes_than_images_of_a_supervised_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "device_count", lambda: 8)
    assert training_processes("sft", "scenes/sft", ["train.batch=2"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_some_of_this_machine_s() -> None:
    assert 0 < free_memory() < 2**50
