"""Damaged lines and a damaged run.json: told in a line, the rest kept, and never a traceback."""

import json
import shutil
from pathlib import Path

import pytest

import tiny_runs
from grpaint.run.folder import RunFolder
from grpaint.run.lines import append_line, cut_lines, read_lines
from tiny_runs import REWARD, TINY, command, status

IT = Path("runs/it")
SETS = [*TINY, REWARD, "evaluate.pictures=0"]
NAMES = ("metrics.jsonl", "evaluations.jsonl")


@pytest.fixture(scope="module")
def straight(small_network, tmp_path_factory):
    """A finished run of four iterations, judged at 0, 2 and 4."""
    with tiny_runs.folder(tmp_path_factory.mktemp("straight")) as here:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    return here / IT


@pytest.fixture(autouse=True)
def it(tmp_path, straight):
    """A copy of it."""
    with tiny_runs.folder(tmp_path, keep=False):
        shutil.copytree(straight, IT)
        yield IT


def _longer(caplog):
    """Go on for an iteration; return what was said."""
    caplog.clear()
    end = command("train", "--name", "it", "--resume", sets=["train.iterations=5"])
    assert end.code == 0, end.err
    return " ".join(caplog.messages)


DAMAGE = {
    "cut short": lambda line: line[: len(line) // 2],
    "NULs": lambda line: bytes(len(line)),
    "not UTF-8": lambda line: b"\xff" + line[1:],
    "a number": lambda line: b"4",
    "null": lambda line: b"null",
    "a list": lambda line: b"[1]",
    "without an iteration": lambda line: line.replace(b'"iteration"', b'"iterations"'),
    "an iteration that is none": lambda line: line.replace(b'"iteration": ', b'"iteration": true, "i": '),
    "nested": lambda line: b"[" * 100_000,
    "digits": lambda line: b'{"iteration": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", DAMAGE)
def test_a_damaged_line_before_the_checkpoint_is_told_and_the_file_kept(name, label, caplog):
    file = IT / name
    before = file.read_bytes().split(b"\n")
    before[1] = DAMAGE[label](before[1])
    file.write_bytes(b"\n".join(before))
    damaged = file.read_bytes()
    assert len(read_lines(file)) == len(before) - 2
    assert f"{name}: line 2 damaged (" in caplog.text
    text = _longer(caplog)
    assert text.startswith(f"grpaint: {file}: line 2 damaged (")
    assert f"as it was is {name}.damaged." in text
    assert text.isprintable()
    assert (IT / f"{name}.damaged").read_bytes() == damaged
    iterations = [1, 2, 3, 4, 5] if name == "metrics.jsonl" else [0, 2, 4, 5]
    assert [line["iteration"] for line in tiny_runs.lines(file)] == [n for n in iterations if n != 2]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("evaluations.jsonl", "strict_by_prompt", "x"),
        ("evaluations.jsonl", "strict_interval", [0.0]),
        ("evaluations.jsonl", "background", None),
        ("evaluations.jsonl", "by_kind", {"count": 5}),
        ("evaluations.jsonl", "base_guided", {"guidance": 1.5}),
        ("evaluations.jsonl", "sampler", "ode"),
        ("evaluations.jsonl", "hacking", {"began": 2, "clean": 0, "reward": {"base": 0, "now": 1}, "judges": {"a": 1}}),
        ("evaluations.jsonl", "prompts", "[/x]"),
        ("metrics.jsonl", "time/cpu_s", "x"),
    ],
)
def test_a_line_with_a_value_that_no_run_writes_is_damaged(name, key, value, caplog):
    lines = [json.loads(line) for line in (IT / name).read_text().splitlines()]
    lines[-1][key] = value
    (IT / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_lines(IT / name)) == len(lines) - 1
    assert f"line {len(lines)} damaged ({key} is not what a run writes), left out" in caplog.text
    end = command("train", "--name", "it", "--resume")
    assert end.code == 0, end.err


def test_an_alarm_that_no_run_writes_is_damage_of_run_json(caplog):
    facts = json.loads((IT / "run.json").read_text())
    facts["hacking"] = {"began": 1, "clean": 0, "best_before": 0, "reward": {"base": 0, "now": 1}, "judges": [5]}
    (IT / "run.json").write_text(json.dumps(facts))
    assert "run.json: hacking is not what a run writes." in _longer(caplog)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_line_after_the_checkpoint_is_dropped_with_the_rest(name, caplog):
    with (IT / name).open("ab") as file:
        file.write(b'{"iteration": 5, \x00\n{"iter')
    assert _longer(caplog) == ""
    assert not (IT / f"{name}.damaged").exists()
    assert tiny_runs.lines(IT / name)[-1]["iteration"] == 5


@pytest.mark.parametrize("name", NAMES)
def test_blank_lines_are_dropped(name, caplog):
    (IT / name).write_bytes(b"\n" + (IT / name).read_bytes() + b"\n  \n")
    assert _longer(caplog) == ""
    assert b"\n\n" not in (IT / name).read_bytes()


def test_lines_that_are_missing_are_told(caplog):
    lines = (IT / "metrics.jsonl").read_text().splitlines(keepends=True)
    (IT / "metrics.jsonl").write_text(lines[0] + lines[3])
    assert "metrics.jsonl: there is no line of iteration 2, 3." in _longer(caplog)


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_file_is_no_traceback(name, caplog):
    (IT / name).unlink()
    text = _longer(caplog)
    assert ("there is no line of iteration 1, 2, 3, 4" in text) == (name == "metrics.jsonl")


def test_a_second_damage_does_not_replace_what_the_first_left(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for text in ("a\n", "b\n"):
        file.write_text(text)
        cut_lines(file, 1)
    assert [(tmp_path / f"metrics.jsonl.damaged{end}").read_text() for end in ("", "-2")] == ["a\n", "b\n"]


def test_a_line_is_appended_after_one_that_was_cut_short(tmp_path):
    file = tmp_path / "metrics.jsonl"
    line = {"iteration": 1, "cost/model_evaluations": 3}
    file.write_text('{"iteration": 1, "cos')
    append_line(file, line)
    append_line(file, line | {"iteration": 2})
    assert [line["iteration"] for line in read_lines(file)] == [1, 2]


FACTS = {
    "empty": b"",
    "cut short": b'{\n  "command": ["grpaint"',
    "NULs": b"\x00" * 40,
    "not UTF-8": b'{"status": "\xff"}',
    "a list": b"[]",
    "sets": b'{"sets": 5}',
    "a set": b'{"sets": [5]}',
    "hacking": b'{"hacking": {"began": 2}}',
    "status": b'{"status": {}}',
    "iterations": b'{"status": "finished", "iterations": "\\u001b[31m"}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("label", FACTS)
def test_a_damaged_run_json_is_written_anew(label, caplog):
    (IT / "run.json").write_bytes(FACTS[label])
    assert command("evaluate", "runs/it").code == 0
    assert "runs/it/run.json" in caplog.text
    text = _longer(caplog)
    assert text.startswith("grpaint: runs/it/run.json")
    assert "is written anew; as it was it is run.json.damaged." in text
    assert text.isprintable()
    assert (IT / "run.json.damaged").read_bytes() == FACTS[label]
    assert (status(IT)["status"], status(IT)["iterations"]) == ("finished", 5)
    assert status(IT)["command"][:2] == ["grpaint", "train"]


def test_a_run_whose_base_was_judged_in_a_lost_line_raises_no_alarm(caplog):
    lines = (IT / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (IT / "evaluations.jsonl").write_text("".join(lines[1:]))
    _longer(caplog)
    assert RunFolder(IT).lines("evaluations.jsonl")[0]["iteration"] == 2
