"""How a run of two processes ends: by errors, signals and deaths, or before its group has formed."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from running import IT, children, end_of, enter, start, wait_for_lines

from grpaint.run.signals import NOTICE
from tiny_runs import command, lines, status

REWARD_FILE = """
import os, signal
from pathlib import Path

from grpaint.parallel import watch

Path(f"built-{os.getpid()}").touch()
if os.environ.get("RANK") == os.environ.get("LATE_RANK"):
    watch.EVERY_S = 3  # many iterations

def score(images, prompts):
    fault = Path("fault")
    faulty = os.environ.get("RANK") == os.environ.get("FAULT_RANK", "1")
    if faulty and Path("runs/it/metrics.jsonl").exists() and fault.exists():
        what = fault.read_text()
        Path("time").touch()
        if what == "raise":
            raise ValueError("the first line\\nand a second one")
        fault.unlink()
        for name in what.split():
            os.kill(os.getpid(), getattr(signal, name))
    return images.mean((1, 2, 3))
"""
LONG = ["train.iterations=100000", "evaluate.every=100000", "checkpoint.every=100000"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch, REWARD_FILE)


def test_ctrl_c_saves_and_the_run_is_resumed_by_another_number_of_processes():
    late = {"LATE_RANK": "0"}  # of all it looks last for signals, and the user is told all the same
    running = start("--processes", "2", sets=[*LONG, "rewards.bright.place=each"], **late)
    wait_for_lines(running)
    running.send_signal(signal.SIGINT)
    assert end_of(running) == NOTICE.decode() + "grpaint: stopped by SIGINT after saving; continue with --resume.\n"
    assert running.returncode == 130
    assert status(IT)["status"] == "interrupted"
    done = len(lines(IT / "metrics.jsonl"))
    resumed = start("--resume", sets=[*LONG, "rewards.bright.place=node"])
    wait_for_lines(resumed, done + 2)
    resumed.terminate()
    end_of(resumed)
    assert resumed.returncode == 143
    numbers = [line["iteration"] for line in lines(IT / "metrics.jsonl")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_second_signal_ends_all_at_once():
    running = start("--processes", "2", sets=LONG)
    wait_for_lines(running)
    ranks = children(running.pid)
    os.kill(ranks[1], signal.SIGSTOP)  # so that it cannot end by itself
    running.terminate()
    time.sleep(1)
    running.terminate()
    assert end_of(running).removeprefix(NOTICE.decode()) == "grpaint: stopped at once; what was saved before stays.\n"
    assert running.returncode == 143
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert status(IT)["status"] == "interrupted"


def test_ranks_save_and_end_when_the_command_is_killed():
    running = start("--processes", "2", sets=LONG)
    wait_for_lines(running)
    running.kill()
    running.communicate(timeout=60)  # until the ranks have closed its output
    assert (status(IT)["status"], status(IT)["reason"]) == ("interrupted", "SIGTERM")
    assert len(list(IT.glob("checkpoints/*"))) == 1


@pytest.mark.parametrize(("place", "rank", "built"), [("each", "1", 2), ("node", "0", 1)])
def test_an_error_on_a_rank_is_said_once_and_ends_the_run(place, rank, built):
    Path("fault").write_text("raise")
    running = start("--processes", "2", sets=[*LONG, f"rewards.bright.place={place}"], FAULT_RANK=rank)
    line = running.stderr.readline()
    assert time.time() - Path("time").stat().st_mtime < 10
    errors = line + running.stderr.read()
    assert end_of(running) == ""
    assert running.returncode == 1
    assert errors.startswith("grpaint: reward bright raised ValueError: the first line and a second one")
    assert errors.count("\n") == 1
    assert status(IT)["status"] == "failed"
    assert "the first line and a second one" in status(IT)["reason"]
    assert (status(IT)["processes"], status(IT)["nodes"], status(IT)["devices"]) == (2, 1, ["cpu", "cpu"])
    assert len(list(Path.cwd().glob("built-*"))) == built  # the reward's file was imported by so many processes


@pytest.mark.parametrize(
    ("signals", "code"), [("SIGTERM", 143), pytest.param("SIGTERM SIGTERM", 130, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_rank_ends_the_run_and_is_not_mended_by_a_restart(signals, code):
    Path("fault").write_text(signals)
    running = start("--processes", "2", sets=LONG)
    errors = end_of(running)
    assert running.returncode == code
    assert errors.count("grpaint: stopped ") == 1
    assert status(IT)["status"] == "interrupted"


def test_without_further_starts_the_line_names_the_rank_that_died():
    Path("fault").write_text("SIGKILL")
    running = start("--processes", "2", "--max-restarts", "0", sets=LONG)
    errors = end_of(running)
    assert running.returncode == 1
    assert errors == (
        "grpaint: processes died, and no further start is allowed (rank 1 by exit code -9). What was saved before "
        "stays; repeat the command, a run with --resume.\n"
    )
    assert status(IT)["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--processes", "0"), 'grpaint: --processes 0: a whole number from 1 to 1024, or "auto".\n'),
        (("--processes", "two"), 'grpaint: --processes two: a whole number from 1 to 1024, or "auto".\n'),
    ],
)
def test_a_bad_argument_is_one_line(words, line):
    end = command("train", *words)
    assert (end.code, end.err) == (2, line)


@pytest.mark.slow  # as more processes than prompts
def test_a_bad_name_is_said_by_one_of_the_processes():
    running = start("--processes", "2", "--name", "a/b")
    line = 'grpaint: --name "a/b": the name of a folder under runs, without / and not beginning with a dot.\n'
    assert end_of(running) == line
    assert running.returncode == 2


TCP = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29471"}
OTHER = TCP | {"MASTER_PORT": "29473"}  # or the two that wait would meet, where tests run side by side


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"WORLD_SIZE": "2", "RANK": "2", **TCP}, "RANK = 2, and WORLD_SIZE = 2"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE = many: not a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "GRPAINT_JOIN_S": "soon", **TCP}, "GRPAINT_JOIN_S = soon: not a whole"),
        ({"WORLD_SIZE": "2", **TCP}, "RANK[^\n]*--processes"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR[^\n]*--processes"),
    ],
)
def test_an_environment_of_no_group_is_one_line(environment, part, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    end = command("train", "flow-grpo-fast", "--name", "it")
    assert end.code == 2
    assert re.fullmatch(rf"grpaint: [^\n]*{part}[^\n]*\n", end.err)
    assert not IT.exists()


@pytest.mark.parametrize(
    ("rank", "place", "part"),
    [
        ("0", TCP, "the others did not join within 2 s"),
        ("1", OTHER, "2 s at 127.0.0.1:29473 ([Errno 111]"),
    ],
)
def test_a_group_that_does_not_form_is_one_line(rank, place, part):
    running = start(WORLD_SIZE="2", RANK=rank, GRPAINT_JOIN_S="2", **place)
    errors = end_of(running)
    assert running.returncode == 1
    assert part in errors
    assert errors.startswith("grpaint: ")
    assert errors.count("\n") == 1
    assert not IT.exists()


def test_of_processes_one_that_comes_too_late_is_one_line(monkeypatch):
    Path("sitecustomize.py").write_text('import os, time\nif os.environ.get("RANK") == "1":\n    time.sleep(8)\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", os.environ["PYTHONPATH"]]))
    running = start("--processes", "2", GRPAINT_JOIN_S="1")
    assert end_of(running).startswith("grpaint: rank 0 of WORLD_SIZE = 2: the others did not join within 1 s")
    assert running.returncode == 1
    assert not IT.exists()
