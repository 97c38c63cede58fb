"""What ``--processes auto`` stands for."""

import sys
from pathlib import Path

import pytest
import tomli_w

import tiny_runs
from grpaint.backends.scenes import START
from grpaint.commands import processes
from grpaint.commands.processes import (
    INTERPRETER,
    evaluating_processes,
    examining_processes,
    free_memory,
    training_processes,
)
from grpaint.recipe.config import locate
from grpaint.storage.reading import read_toml

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


def test_auto_judges_with_no_more_processes_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "device_count", lambda: 8)
    monkeypatch.setattr(processes, "free_memory", lambda: 5 * INTERPRETER)
    assert evaluating_processes([str(START["velocity"]), f"other={START['velocity']}"], [], trust=False) == 3
    assert examining_processes("awm", ["train.prompts=6"], trust=False, most=2) == 2


def test_auto_runs_no_code_that_a_run_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "device_count", lambda: 8)
    monkeypatch.setattr(processes, "free_memory", lambda: 5 * INTERPRETER)
    table = read_toml(locate("awm"))
    table["rewards"]["mine"] = {"kind": "own.py:score"}
    with tiny_runs.folder(tmp_path):
        Path("own.py").write_text('from pathlib import Path\nPath("imported").touch()\ndef score(i, p): ...\n')
        Path("run.toml").write_text(tomli_w.dumps(table))
        assert examining_processes("run.toml", ["train.prompts=6"], trust=False) == 3
        assert not Path("imported").exists()
        assert examining_processes("run.toml", ["train.prompts=6"], trust=True) == 3
        assert Path("imported").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_some_of_this_machine_s() -> None:
    assert 0 < free_memory() < 2**50
