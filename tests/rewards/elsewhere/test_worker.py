"""Rewards in a process with an interpreter of its own: what it is given, and how it may end."""

import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
import torch

import tiny_runs
from grpaint.core import Prompt, RewardError
from grpaint.rewards.elsewhere.worker import Worker
from tiny_runs import TINY, command

pytestmark = pytest.mark.usefixtures("small_network")

REWARD = """
import importlib.util, os, subprocess, sys, time
from pathlib import Path

def score(images, prompts, metadata):
    print("a reward may print")
    assert importlib.util.find_spec("torch") is None, "this is not the foreign interpreter"
    return [sum(pixels) / len(pixels) / 255 + meta.get("more", 0) for (w, h, pixels), meta in zip(images, metadata)]

def first(images, prompts, metadata):
    return [(pixels[0] + 256 * pixels[1] + 65536 * pixels[2]) / 2**24 + w for w, h, pixels in images]

def fault(images, prompts, metadata):
    word = prompts[0]
    if word == "raise":
        raise ValueError("no such\\nweights")
    if word == "exit":
        sys.exit(0)
    if word == "interrupt":
        raise KeyboardInterrupt
    if word == "garbage":
        for descriptor in range(1, 9):
            try:
                os.write(descriptor, b"garbage in the place of a frame" * 9)
            except OSError:
                pass
    if word == "kill":
        os.kill(os.getpid(), 9)
    if word == "signal":
        os.kill(os.getpid(), 40)
    if word == "closed":
        os.closerange(0, 20)
    if word == "die":
        sys.stderr.write("Fatal: driver mismatch\\n")
        os._exit(3)
    if word == "abort":
        os.abort()
    if word == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        Path("child").write_text(str(child.pid))
        time.sleep(3600)
    if word == "once" and not Path("died").exists():
        Path("died").touch()
        os._exit(1)
    return {"short": [1.0], "nan": [float("nan")] * len(images), "none": None, "text": ["1"] * len(images)}.get(
        word, [float(i) for i in range(len(images))]
    )
"""
IMAGES = torch.rand(5, 3, 2, 4, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def prompts(text="a", **metadata):
    return [Prompt(text, {**metadata, "more": n}) for n in range(5)]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """An interpreter with nothing but the standard library."""
    place = tmp_path_factory.mktemp("foreign") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    return str(place / "bin/python")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)


@pytest.fixture
def worker(foreign):
    made = []

    def make(function="fault", **settings):
        made.append(Worker(reward=f"mine.py:{function}", python=foreign, images="raw", **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_foreign_interpreter_scores_images_with_their_metadata(worker):
    one = worker("score", batch=2)
    scores = one(IMAGES, prompts())
    torch.testing.assert_close(scores, IMAGES.mean((1, 2, 3)) + torch.arange(5), atol=1e-5, rtol=0)
    assert "under Python 3." in one.start()[0]
    assert torch.equal(one(IMAGES, prompts()), scores)


def test_pixels_come_as_they_were(worker):
    red, green, blue = (IMAGES[:, :, 0, 0] * 255).round().unbind(1)
    expected = (red + 256 * green + 65536 * blue) / 2**24 + 4
    assert torch.equal(worker("first")(IMAGES, prompts()), expected)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("raise", "raised ValueError: no such weights"),
        ("exit", "its worker: it raised SystemExit: 0"),
        ("interrupt", "its worker: it raised KeyboardInterrupt"),
        ("garbage", "failed 3 times on the same batch: its answer is longer than"),
        ("kill", "failed 3 times on the same batch: it ended by SIGKILL"),
        ("signal", "failed 3 times on the same batch: it ended by signal 40"),
        ("closed", "failed 3 times on the same batch: it ended with exit code"),
        ("die", "failed 3 times on the same batch: it ended with exit code 3 (it said: Fatal: driver mismatch)"),
        ("abort", "it ended by SIGABRT"),
        ("short", "its worker gave 1 values for 5 images"),
        ("nan", "Out of range float values are not JSON compliant"),
        ("none", "must return a list, one value an image"),
        ("text", "it gave '1' for a score"),
    ],
)
def test_worker_failures_are_reported(worker, word, message):
    with pytest.raises(RewardError) as raised:
        worker()(IMAGES, prompts(word))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hanging_worker_is_killed_with_its_children(worker):
    with pytest.raises(RewardError, match=r"did not answer within 2 s and was ended"):
        worker(timeout_s=2.0, restarts=0)(IMAGES, prompts("hang"))
    gone(int(Path("child").read_text()))


def test_a_worker_that_dies_is_restarted(worker):
    assert torch.equal(worker()(IMAGES, prompts("once")), torch.arange(5.0))
    assert Path("died").exists()


def test_the_worker_continues_after_a_fault(worker):
    one = worker()
    for word in ("raise", "die", "fine"):
        if word == "fine":
            assert torch.equal(one(IMAGES, prompts(word)), torch.arange(5.0))
        else:
            with pytest.raises(RewardError):
                one(IMAGES, prompts(word))


def test_a_worker_that_does_not_start_gives_the_reason(foreign):
    Path("bad.py").write_text("import no_such_package\ndef f(images, prompts, metadata): pass\n")
    with pytest.raises(
        RewardError, match=r"did not start: it ended with exit code 1.*No module named 'no_such_package'"
    ):
        Worker(reward="bad.py:f", python=foreign).start()
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RewardError, match="did not start: it ended with exit code 0"):
        Worker(reward="leaves.py:f", python=foreign).start()
    with pytest.raises(RewardError, match=r'python = "/no/such/python": cannot be started'):
        Worker(reward="bad.py:f", python="/no/such/python").start()
    with pytest.raises(ValueError, match=r"no file nowhere\.py"):
        Worker(reward="nowhere.py:f")
    with pytest.raises(ValueError, match=r"write file\.py:function"):
        Worker(reward="bad.py")


def gone(pid):
    """Wait until a process has ended; where it lives on, the limit of every test says so."""
    while alive(pid):
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_ends_with_a_parent_that_is_killed_while_it_works(foreign):
    program = f"""
import torch
from grpaint.core import Prompt
from grpaint.rewards.elsewhere.worker import Worker
worker = Worker(reward="mine.py:fault", python={foreign!r}, images="raw")
worker.start()
print(worker._process._process.pid, flush=True)
worker(torch.zeros(1, 3, 2, 2), [Prompt("hang")])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    while not Path("child").exists():
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone(pid)
    os.kill(int(Path("child").read_text()), signal.SIGKILL)  # what a reward itself starts is its own affair then


def test_a_run_stops_with_its_worker_and_resumes(tmp_path, foreign):
    reward = (
        "import os\nfrom pathlib import Path\ncalls = 0\n"
        "def f(images, prompts, metadata):\n    global calls\n    calls += 1\n"
        "    if calls == 4 and Path('fault').exists(): raise OSError('disk gone')\n"
        "    Path('worker').write_text(str(os.getpid()))\n"
        "    return [sum(p) / len(p) / 255 + 0.1 * (i % 4) for i, (w, h, p) in enumerate(images)]\n"
    )
    table = f'rewards={{far={{kind="worker",reward="mine.py:f",python="{foreign}",images="raw"}}}}'
    with tiny_runs.folder(tmp_path / "runs"):
        Path("mine.py").write_text(reward)
        assert command("train", "flow-grpo-fast", "--name", "whole", sets=[*TINY, table]).code == 0
        gone(int(Path("worker").read_text()))
        Path("fault").touch()
        end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, table])
        assert end.code == 1
        assert "reward far: its worker: it raised OSError: disk gone" in end.err
        gone(int(Path("worker").read_text()))
        Path("fault").unlink()
        assert command("train", "--name", "it", "--resume").code == 0
        tiny_runs.same(Path("runs/whole"), Path("runs/it"))
    shutil.rmtree(tmp_path / "runs")
