"""One process writes a run, a folder of records or a comparison at a time; the second is refused, or waits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_runs
from grpaint.run.folder import RunFolder
from grpaint.storage.lock import Lock
from tiny_runs import REWARD, TINY, command, lines, process, status

SETS = [*TINY, REWARD, "evaluate.pictures=0"]
IT = Path("runs/it")


@pytest.fixture(autouse=True)
def _here(small_network, tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def test_a_second_resume_is_refused_and_harms_nothing():
    assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    before = {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()}
    with RunFolder.open(IT):
        end = command("train", "--name", "it", "--resume", sets=["train.iterations=5"])
        assert end.code == 2
        assert end.err.startswith(f"grpaint: runs/it: process {os.getpid()} on this machine (grpaint")
        assert end.err.endswith(
            "two at once would mix what they write. Wait until it has ended or stop it (it saves on SIGTERM), or start "
            "another run with another --name.\n"
        )
        for words in (("evaluate", "it"), ("sample", "it", "a red circle")):  # readers do not mind
            assert command(*words).code == 0
        assert {path: path.read_bytes() for path in before} == before
    assert command("train", "--name", "it", "--resume", sets=["train.iterations=5"]).code == 0
    assert {path.name for path in IT.iterdir()} == {
        "run.toml", "run.json", "metrics.jsonl", "evaluations.jsonl", "held-out.json", "report.html",
        "samples", "checkpoints",
    }  # fmt: skip


def test_of_two_processes_that_resume_at_once_one_goes_on():
    assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    both = [process("train", "--name", "it", "--resume", sets=["train.iterations=8"]) for _ in range(2)]
    ends = [(running.communicate(timeout=600)[1], running.returncode) for running in both]
    assert {code for _, code in ends} <= {0, 2}  # both 0 if one began after the other had ended
    assert [line["iteration"] for line in lines(IT / "metrics.jsonl")] == list(range(1, 9))
    for text, code in ends:
        assert code == 0 or "writes it, and two at once would mix" in text


def test_of_two_processes_that_start_one_name_one_begins():
    both = [process("train", "flow-grpo-fast", "--name", "it", sets=SETS) for _ in range(2)]
    ends = [(running.communicate(timeout=600)[1], running.returncode) for running in both]
    assert sorted(code for _, code in ends) == [0, 2]
    (text,) = [text for text, code in ends if code == 2]
    assert text.count("\n") == 1
    assert "runs/it exists." in text or "writes it, and two at once" in text
    assert [line["iteration"] for line in lines(IT / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [path.name for path in Path("runs").iterdir()] == ["it"]


def test_a_run_that_was_killed_is_free_at_once():
    running = process("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "train.iterations=500"])
    while not (IT / "metrics.jsonl").is_file() or not lines(IT / "metrics.jsonl"):
        assert running.poll() is None
        time.sleep(0.01)
    assert (IT / ".lock").read_text().split()[0] == str(running.pid)
    running.kill()
    running.communicate()
    RunFolder.open(IT).__exit__()


def test_a_folder_of_records_that_another_process_writes_is_refused():
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "train.iterations=1"]).code == 0
    Path("out").mkdir()
    words = ("evaluate", "it", "--out", "out", "--few")
    with Lock(Path("out/.lock"), "out", ""):
        end = command(*words)
        assert end.code == 2
        assert end.err.splitlines()[-1].startswith(f"grpaint: out: process {os.getpid()} on this machine")
        assert [path.name for path in Path("out").iterdir()] == [".lock"]
    assert command(*words).code == 0
    assert not Path("out/.lock").exists()


PARENT = """
import os, subprocess, sys
from pathlib import Path
reading, writing = os.pipe()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=reading, stdout=subprocess.PIPE)
os.close(reading)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
CHILD = """
import signal, sys, time
from grpaint.parallel.parent import stop_with_parent
def end(number, frame):
    print("nobody reads this")
    open("ended", "w").write(str(number))
    sys.exit()
signal.signal(signal.SIGTERM, end)
stop_with_parent()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_child_is_asked_to_stop_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    pid = int(parent.communicate(timeout=60)[0])
    end = time.monotonic() + 30
    while not Path("ended").is_file() or not Path("ended").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert Path("ended").read_text() == str(int(signal.SIGTERM))
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ended, perhaps while its file was read
        return False


COMPARED = [item for item in SETS if not item.startswith(("train.iterations", "checkpoint.every", "evaluate.every"))]
COMPARED_RUNS = Path("out") / "work" / "runs"
WORDS = ("compare", "flow-grpo-fast", "--seeds", "0", "--budget-evaluations", "400", "--out", "out")


def _prepared():
    """A comparison's settings, and the words of its only run in a process of its own, as compare gives them."""
    sets = [item.replace("reward.py", str(Path("reward.py").resolve())) for item in COMPARED]
    return sets, process(*WORDS, sets=sets)


def test_two_equal_comparisons_run_each_job_once():
    sets, first = _prepared()
    second = process(*WORDS, sets=sets)
    for running in (first, second):
        _, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors
    (run,) = COMPARED_RUNS.iterdir()
    iterations = [line["iteration"] for line in lines(run / "metrics.jsonl")]
    assert iterations == list(range(1, len(iterations) + 1))
    assert "--resume" not in status(run)["command"]
    assert not list(Path("out").rglob("*.lock"))


def test_a_comparison_that_was_killed_is_repeated():
    sets, first = _prepared()
    run = COMPARED_RUNS / "scenes-flow-grpo-fast-seed0"
    while not (run / "metrics.jsonl").is_file() or not lines(run / "metrics.jsonl"):
        assert first.poll() is None
        time.sleep(0.005)
    first.kill()
    first.communicate()
    end = command(*WORDS, sets=sets)
    assert end.code == 0, end.err
    iterations = [line["iteration"] for line in lines(run / "metrics.jsonl")]
    assert iterations == list(range(1, len(iterations) + 1))
    assert json.loads(Path("out/comparison.json").read_text())


def test_a_comparison_waits_for_a_run_that_another_process_trains(monkeypatch):
    sets = [item.replace("reward.py", str(Path("reward.py").resolve())) for item in COMPARED]
    assert command(*WORDS, sets=sets).code == 0
    run = COMPARED_RUNS / "scenes-flow-grpo-fast-seed0"
    shutil.rmtree("out/runs")
    lock = Lock(run / ".lock", "x", "")
    monkeypatch.setattr("grpaint.storage.lock.time.sleep", lambda _: lock.release())
    end = command(*WORDS, sets=sets)
    assert end.code == 0, end.err
    assert f"scenes-flow-grpo-fast-seed0: waits for process {os.getpid()} on this machine" in end.out
