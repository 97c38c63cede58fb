"""The guide of eight cards: its commands, read from it, on a tiny pipeline, with two processes in place of eight."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from grpaint.recipe.config import override
from tiny_pipelines import save
from tiny_runs import lines
from tiny_scorers import clip_folder

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs/guides/eight-gpus.md").read_text(encoding="utf-8")
RECIPE = ROOT / "examples/eight-gpus/flux.toml"


def make(folder):
    """Fill a folder with the recipe, changed as the guide's last section says, and what it names."""
    save("flux-dev", folder / "models").rename(folder / "models/flux")
    clip_folder(folder / "weights/pick")
    (folder / "prompts.txt").write_text("".join(f"a cat and {number} dogs\n" for number in range(60)), encoding="utf-8")
    sets = re.findall(r"^flux\.toml +(.+)$", GUIDE.split("## Without a card")[1], re.M)
    table = override(tomllib.loads(RECIPE.read_text(encoding="utf-8")), shlex.split(" ".join(sets)))
    (folder / "flux.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def commands():
    """The guide's commands, each as its words, in order, with two processes."""
    found = re.findall(r"^(grpaint .*)$", GUIDE, re.M)
    return [shlex.split(line.replace("--processes 8", "--processes 2"))[1:] for line in found]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_guide_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    output = {}
    for words in commands():
        more = ["--set", "train.iterations=6"] if words[-1] == "--resume" else []  # the run has finished its four
        program = [sys.executable, "-m", "grpaint", *words, *more]
        end = subprocess.run(program, capture_output=True, text=True, check=False)
        assert end.returncode == 0, f"{words}: {end.stderr}{end.stdout}"
        output[words[0]] = end.stdout
    assert list(output) == ["show", "plan", "doctor", "train", "evaluate", "export"]
    assert "rows of each process" in output["show"]
    assert 'recommended: processes.shard = "none"' in output["plan"]
    assert "FAIL" not in output["doctor"]
    for line in re.findall(r"^(PASS .*?)(?:: \d.*)?$", GUIDE, re.M):
        assert line in output["doctor"]
    assert output["doctor"].count("PASS") == 6
    assert [line["iteration"] for line in lines(tmp_path / "runs/flux/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "reward/pick" in output["evaluate"]
    assert len(list((tmp_path / "exports").rglob("*.safetensors"))) == 1
