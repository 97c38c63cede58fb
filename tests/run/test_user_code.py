"""A user's own code that asks for the end of the process, and readers of the output that go away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import open_recipe
from tiny_runs import REWARD, SMALL_MAIN, TINY, command, flags, lines, status

pytestmark = pytest.mark.usefixtures("small_network")

PIECES = """
import sys
from pathlib import Path
import torch
from grpaint.learn import GroupNorm, PolicyGradient
from grpaint.scenes.world import SceneData

def wrong(calls=[0]):
    calls[0] += 1
    if calls[0] > 3:
        exec(Path("fault").read_text())

def reward(images, prompts):
    wrong()
    return images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)

def advantage(table, rollout):
    wrong()
    return GroupNorm()(table, rollout)

def objective(policy, rollout, advantage):
    wrong()
    yield from PolicyGradient()(policy, rollout, advantage)

class Data(SceneData):
    def prompts(self, count, iteration, seed):
        wrong()
        return super().prompts(count, iteration, seed)

class Sink:
    def start(self, folder, settings):
        pass

    def write(self, iteration, line):
        wrong()
        with Path("written").open("a") as file:
            file.write(f"{iteration}\\n")

class NoSink:
    def start(self, folder, settings):
        sys.exit(0)

    def write(self, iteration, line):
        pass
"""
ENDS = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit('a reason\\nof \\x1b two')": r"SystemExit: a reason of \x1b two",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise MemoryError": "MemoryError",
    "raise RuntimeError('CUDA out of memory')": "RuntimeError: CUDA out of memory",
    "raise BrokenPipeError(32, 'Broken pipe')": "BrokenPipeError: [Errno 32] Broken pipe",
    "raise type('Mine', (BaseException,), {})('own')": "Mine: own",
}


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("pieces.py").write_text(PIECES)
        yield


def run(fault, *sets, recipe="flow-grpo-fast"):
    Path("fault").write_text(fault)
    return command("train", recipe, "--name", "it", sets=[*TINY, "checkpoint.every=1", *sets])


def failed(end, words):
    """Assert exit code 1, one line with ``words``, and a run that says the same and has kept its checkpoint."""
    assert end.code == 1, end.err
    assert end.err.count("\n") == 1
    assert words in end.err
    facts = status(Path("runs/it"))
    assert (facts["status"], words in facts["reason"]) == ("failed", True)
    assert list(Path("runs/it/checkpoints").iterdir())


@pytest.mark.parametrize("fault", ENDS)
def test_whatever_a_reward_raises_ends_the_run_with_its_name(fault):
    end = run(fault, 'rewards={mine={kind="pieces.py:reward"}}')
    failed(end, f"reward mine raised {ENDS[fault]} (first prompts: ")
    Path("fault").write_text("")
    assert command("train", "--name", "it", "--resume").code == 0
    assert status(Path("runs/it"))["status"] == "finished"


@pytest.mark.parametrize("fault", ["sys.exit(0)", "raise KeyboardInterrupt", "raise GeneratorExit"])
@pytest.mark.parametrize(
    "piece",
    [
        'advantage={kind="pieces.py:advantage"}',
        'objective={kind="pieces.py:objective"}',
        'data={kind="pieces.py:Data"}',
    ],
)
def test_a_piece_that_asks_for_the_end_fails_the_run_with_its_line(piece, fault):
    end = run(fault, REWARD, piece)
    failed(end, "pieces.py, line ")
    assert f"in wrong: {ENDS[fault]}" in end.err or f"in <module>: {ENDS[fault]}" in end.err


def test_an_error_of_writing_in_a_piece_is_not_taken_for_one_of_the_run_folder():
    failed(
        run("raise OSError(28, 'No space left')", REWARD, 'advantage={kind="pieces.py:advantage"}'), "in wrong: OSError"
    )


@pytest.mark.parametrize(
    "fault", ["sys.exit(0)", "raise KeyboardInterrupt", "raise BrokenPipeError(32, 'Broken pipe')"]
)
def test_a_logger_that_fails_is_named_and_left_out_and_the_run_goes_on(fault):
    end = run(fault, REWARD, 'loggers={mine={kind="pieces.py:Sink"}}')
    assert (end.code, end.err) == (0, "")
    line = f"loggers.mine raised {ENDS[fault]}; it gets no more lines and the run goes on"
    assert " ".join(end.out.split()).count(line) == 1
    assert len(Path("written").read_text().split()) == 3
    assert len(lines(Path("runs/it/metrics.jsonl"))) == 4
    assert status(Path("runs/it"))["status"] == "finished"


def test_a_logger_that_does_not_start_is_named_before_the_run_begins():
    end = run("", REWARD, 'loggers={mine={kind="pieces.py:NoSink"}}')
    assert (end.code, end.err) == (2, "grpaint: loggers.mine raised SystemExit: 0\n")


@pytest.mark.parametrize("command_line", [["show"], ["plan"], ["train", "--name", "it"]])
def test_a_file_that_exits_when_it_is_imported_is_named(command_line):
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    end = command(command_line[0], "flow-grpo-fast", *command_line[1:], sets=['rewards={mine={kind="leaves.py:f"}}'])
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert 'rewards.mine.kind = "leaves.py:f": cannot be imported: it raised SystemExit: 0' in end.err


@pytest.mark.parametrize(
    "fault",
    [
        "sys.exit(0)",
        "raise KeyboardInterrupt",
        "raise EOFError",
        "raise BrokenPipeError",
        "raise type('Mine', (BaseException,), {})",
    ],
)
def test_a_class_of_a_user_that_asks_for_the_end_while_it_is_made_is_named(fault):
    Path("leaves.py").write_text(f"import sys\nclass C:\n    def __init__(self):\n        {fault}\n")
    end = command("show", "flow-grpo-fast", sets=['rewards={mine={kind="leaves.py:C"}}'])
    assert (end.code, end.err.count("\n")) == (1, 1)
    assert "leaves.py, line 4, in __init__: " in end.err


def test_reward_try_names_a_reward_that_exits():
    Path("leaves.py").write_text("import sys\ndef f(images, prompts):\n    sys.exit(0)\n")
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8)).save("pictures/0.png")
    end = command("reward", "try", "leaves.py:f", "--images", "pictures")
    assert (end.code, end.err.count("\n")) == (1, 1)
    assert "reward leaves.py:f raised SystemExit: 0" in end.err


def test_a_check_of_doctor_that_exits_is_a_finding_and_the_others_are_carried_out():
    from grpaint.commands.doctor.command import examine
    from grpaint.commands.doctor.examination import Finding

    def leaves(case):
        sys.exit(0)

    recipe, _ = open_recipe("flow-grpo-fast", "train", TINY)
    findings = list(examine(recipe, Runtime(), [leaves, lambda case: Finding("next", True, "", "")]))
    assert [(finding.check, finding.passed) for finding in findings] == [("leaves", False), ("next", True)]
    assert findings[0].evidence == "SystemExit: 0"


@pytest.mark.parametrize("method", ["check", "pair", "state_dict", "load_state_dict", "spent", "start"])
def test_every_method_of_a_reward_that_exits_is_named(method):
    end = run("", f'rewards={{mine={{kind="{_with_methods(method)}"}}}}')
    assert end.code in (1, 2)
    assert end.err.count("\n") == 1
    assert "SystemExit: 0" in end.err
    assert "mine" in end.err


def test_a_reward_that_exits_while_it_stops_is_named_and_its_run_is_finished():
    end = run("", f'rewards={{mine={{kind="{_with_methods("stop")}"}}}}')
    assert (end.code, end.err) == (0, "")
    assert "reward mine raised SystemExit: 0 (while it stopped)" in end.out
    assert status(Path("runs/it"))["status"] == "finished"


def _with_methods(broken):
    """Write a reward of which one method exits; its kind."""
    bodies = {
        "check": "return None",
        "pair": "return None",
        "state_dict": "return {}",
        "load_state_dict": "return None",
        "spent": "return {'dollars': 1}",
        "start": "return ['started']",
        "stop": "return None",
    }
    bodies[broken] = "import sys; sys.exit(0)"
    arguments = {"load_state_dict": ", state"}
    methods = [f"    def {name}(self{arguments.get(name, '')}):\n        {body}\n" for name, body in bodies.items()]
    call = "    def __call__(self, images, prompts):\n        return images.mean((1, 2, 3))\n"
    base = "from grpaint.core.reward import RewardBase\nclass R(RewardBase):\n"
    Path("methods.py").write_text(base + call + "".join(methods))
    return "methods.py:R"


@pytest.mark.parametrize("words", [["reward", "try", "slow.py:f", "--images", "pictures"], ["train", "flow-grpo-fast"]])
def test_ctrl_c_in_a_reward_stays_a_ctrl_c(words):
    slow = "    Path('begun').touch()\n    time.sleep(600)\n"
    Path("slow.py").write_text("import time\nfrom pathlib import Path\ndef f(images, prompts):\n" + slow)
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8)).save("pictures/0.png")
    training = words[0] == "train"
    process = tiny_runs.process(*words, sets=[*TINY, 'rewards={slow={kind="slow.py:f"}}'] if training else [])
    while not Path("begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(1 + training):  # the first asks a run to save
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "stopped at once" in err
    assert "reward" not in err
    if training:
        assert status(Path("runs/flow-grpo-fast"))["status"] == "interrupted"


def _piped(words, reader, sets=()):
    """Run ``grpaint`` with its standard output read by a shell command; its exit code, and its standard error."""
    program = SMALL_MAIN.format(folder=str(Path(tiny_runs.__file__).parent))
    Path("program.py").write_text(program)
    line = f'"$@" 2> err {reader}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "program.py", *words, *flags(*sets)],
        capture_output=True,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )
    return done.returncode, Path("err").read_text()


@pytest.mark.parametrize(
    ("reader", "reason"),
    [("| head -1", "Broken pipe"), ("| true", "Broken pipe"), ("> /dev/full", "No space left on device")],
)
def test_a_run_outlives_the_reader_of_its_output(reader, reason):
    code, err = _piped(["train", "flow-grpo-fast", "--name", "it"], reader, [*TINY, REWARD])
    assert code == 0
    assert err == f"grpaint: standard output: {reason}; the command goes on, and what it prints is lost.\n"
    assert status(Path("runs/it"))["status"] == "finished"
    assert len(lines(Path("runs/it/metrics.jsonl"))) == 4


def test_a_run_outlives_a_reward_that_closes_its_output():
    Path("fault").write_text("sys.stdout.close()")
    sets = [*TINY, 'rewards={mine={kind="pieces.py:reward"}}']
    code, err = _piped(["train", "flow-grpo-fast", "--name", "it"], "| cat", sets)
    assert code == 0
    assert "standard output: I/O operation on closed file" in err
    assert err.count("\n") == 1
    assert status(Path("runs/it"))["status"] == "finished"


def test_a_run_that_nobody_reads_at_all_has_its_exit_code_and_status():
    Path("pieces.py").write_text(PIECES)
    Path("fault").write_text("sys.exit(0)")
    sets = [*TINY, 'rewards={mine={kind="pieces.py:reward"}}']
    code, _ = _piped(["train", "flow-grpo-fast", "--name", "it"], "2>&1 | true", sets)
    assert code == 1
    assert status(Path("runs/it"))["status"] == "failed"
    assert "reward mine raised SystemExit: 0" in json.dumps(status(Path("runs/it")))


@pytest.mark.parametrize("words", [["show", "flow-grpo-fast"], ["list", "rewards"], ["show", "--help"]])
def test_a_command_that_only_prints_ends_quietly_with_its_reader(words):
    code, err = _piped(words, "| true")
    assert code in (0, 1)  # 0 where all was written before
    assert err == ""
