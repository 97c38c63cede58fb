"""A folder of runs for the tests of ``grpaint view``: copies of one real short run, each in a state of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import tiny_runs
from open_pages import FOREIGN

NAME = "🎨 " + FOREIGN.replace("/", "\u2044")  # no file name has a slash
TOKEN = "sesame-sesame-sesame"


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    """Write a .jsonl file."""
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def change(run: Path, **facts: Any) -> None:
    """Change run.json."""
    (run / "run.json").write_text(json.dumps(tiny_runs.status(run) | facts))


def make_runs(root: Path) -> Path:
    """Make ``root/runs``: ``first`` (finished), ``second`` (other settings and scores), and four more states."""
    with tiny_runs.folder(root) as here:
        sets = [*tiny_runs.TINY, tiny_runs.REWARD, "train.iterations=6", "evaluate.pictures=3"]
        done = tiny_runs.command("train", "flow-grpo-fast", "--name", "first", sets=sets)
        assert done.code == 0, done.err
        runs = here / "runs"
        shutil.rmtree(runs / "first/checkpoints")
        lines = tiny_runs.lines(runs / "first/pictures.jsonl")
        for line in lines:
            line["captions"][0] = FOREIGN
        write_lines(runs / "first/pictures.jsonl", lines)
        for name in ("second", "failed", "hacked", "killed", NAME):
            shutil.copytree(runs / "first", runs / name)
        _raise_scores(runs / "second")
        recipe = (runs / "second/run.toml").read_text()
        assert "seed = 1000\n" in recipe
        (runs / "second/run.toml").write_text(recipe.replace("learning_rate = ", "learning_rate = 1"))
        change(runs / "failed", status="failed", reason="reward bright raised ValueError")
        alarm = {"reward": {"base": 0.1, "now": 0.9}, "judges": {"background": {"base": 1.0, "now": 3.0, "ratio": 3.0}}}
        change(runs / "hacked", hacking={"began": 4, "clean": 2, "best_before": 2} | alarm)
        change(runs / "killed", status="running", end=None)
        return runs


def _raise_scores(run: Path) -> None:
    """Let two of six prompts be met after training."""
    lines = tiny_runs.lines(run / "evaluations.jsonl")
    for line in lines[1:]:
        line["strict_by_prompt"] = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        line["strict"] = 2 / 6
    lines[0]["strict_by_prompt"] = [0.0] * 6
    lines[0]["strict"] = 0.0
    write_lines(run / "evaluations.jsonl", lines)
