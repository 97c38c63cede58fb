"""Commands besides training with ``--processes``: what they print, and one line when they refuse."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from equality import rounds_alike
from test_judge import check_close

from tiny_runs import command

RUN = ["train", "mix-grpo", "--name", "it", "--set", "train.iterations=1", "--set", "evaluate.guided=[]"]
SHORT = ["--set", "evaluate.prompts=10", "--set", "evaluate.steps=2"]
SETS = ["--set", "threads=1", "--set", "plan.steps=3", "--set", "plan.window.size=2", "--set", "train.group_size=3"]
REWARD = """
def score(images, prompts):
    brightness = images.mean((1, 2, 3))
    return brightness / brightness.max()
"""
SHARED = ["--set", 'rewards={mine={kind="shared.py:score",place="node"},small={kind="jpeg"}}']
SHARED_REWARD = """
import os
from pathlib import Path
import torch

def score(images, prompts):
    Path(f"called-by-{os.getpid()}").touch()
    return images.mean((1, 2, 3))

def likeness(images, prompts):
    Path(f"compared-by-{os.getpid()}").touch()
    return -(images - torch.stack([prompt.reference for prompt in prompts])).abs().mean((1, 2, 3))

likeness.needs_reference = True
"""
LIKENESS = ["--set", 'rewards.like={kind="shared.py:likeness",place="node"}']


def grpaint(folder, *words, processes=1, code=0):
    """What a command prints on its two streams; as one process it is this one."""
    if processes == 1:
        with contextlib.chdir(folder):
            end = command(*words)
        out, err, ended = end.out, end.err, end.code
    else:
        words = ["-m", "grpaint", *words, "--processes", str(processes)]
        result = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
        out, err, ended = result.stdout, result.stderr, result.returncode
    assert ended == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "shared.py").write_text(SHARED_REWARD)
    grpaint(folder, *RUN, *SHORT, *SETS, "--set", "train.prompts=2", "--set", "evaluate.pictures=0")
    return folder


def callers(folder, done="called"):
    """How many processes have called the shared reward since the last call of this function."""
    return len([file.unlink() for file in folder.glob(f"{done}-by-*")])


def test_many_processes_evaluate_a_model_as_one_does(folder):
    one, two = (
        json.loads(grpaint(folder, "evaluate", "it", *SHORT, *SHARED, "--json", processes=count)[0]) for count in (1, 2)
    )
    assert callers(folder) == 2  # the one, and the first of the two
    check_close(one, two, "evaluation", 1e-5)


def test_ctrl_c_ends_an_evaluation_at_once(folder, tmp_path):
    words = ["evaluate", "it", "--set", "evaluate.prompts=3000", "--set", "evaluate.steps=500", "--processes", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "grpaint", *words],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(b"at/0/1" in store.read_bytes() for store in tmp_path.glob("grpaint-*/store")):  # rank 1 is there
        assert running.poll() is None
        time.sleep(0.05)
    begin = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == "grpaint: stopped at once; what was saved before stays.\n"
    assert time.monotonic() - begin < 10
    assert running.returncode == 130


def test_many_processes_record_and_compare_models_as_one_does(folder):
    results, files = [], []
    words = ["evaluate", "it", "it:base", *SHORT, *SHARED, *LIKENESS, "--few", "--keep", "--json", "--out"]
    for count in (1, 3):
        output, errors = grpaint(folder, *words, f"of-{count}", processes=count)
        assert errors == "it  10 of 10\nbase  10 of 10\n"
        results.append(json.loads(output))
        out = folder / f"of-{count}"
        assert (callers(folder), callers(folder, "compared")) == (1, 1)
        files.append({str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()})
    check_close(*results, "comparison", 5e-3)  # a pixel that rounds at a level's edge moves the entropy by .001
    again, errors = grpaint(folder, *words, "of-3")  # one process finds every record made
    check_close(results[1], json.loads(again), "the same records", 1e-6)
    assert not errors
    assert files[0] == files[1]
    assert sum(name.endswith(".png") for name in files[0]) == 2 * 2 * 10


def test_many_processes_scan_prompts_as_one_does(folder):
    # three a batch, the last of one prompt, so that two ranks of the three have no share in it
    words = ["data", "prompts", "mix-grpo", "--prompts", "4", *SETS, *SHARED, "--set", "train.prompts=3", "--json"]
    one, three = (json.loads(grpaint(folder, *words, processes=count)[0]) for count in (1, 3))
    assert callers(folder) == 2
    check_close(one, three, "scan", 1e-5 if rounds_alike("fp32") else 1e-3)  # a last bit may turn a level of a JPEG


def test_a_refusal_is_one_line(folder):
    words = ["evaluate", "it", "it:base", *SHORT, "--out", "none"]
    _, errors = grpaint(folder, *words, processes=2, code=2)
    assert errors.startswith("grpaint: evaluate.prompts = 10: a Frechet distance on 192 features needs more images")
    assert errors.count("\n") == 1
    assert not (folder / "none").exists()


def test_doctor_finds_a_reward_that_many_processes_score_differently(folder):
    Path(folder, "reward.py").write_text(REWARD)
    words = ["doctor", "mix-grpo", *SETS, "--set", "rewards.best.kind=reward.py:score"]
    output, errors = grpaint(folder, *words, processes=2, code=1)
    verdicts = [line[:4] for line in output.splitlines() if not line.startswith("      ")]
    assert verdicts.count("FAIL") == 1
    assert "FAIL  the scores of many processes are those of one" in output
    assert "in best\n      likely: a reward compares the images of a call" in output
    assert errors == f"grpaint: 1 of {len(verdicts)} checks failed.\n"
