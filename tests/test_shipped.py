"""What ships in the package: the two base models, the recipes, the examples and the README's own words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpaint.backends.scenes import START, Scenes
from grpaint.core.runtime import Runtime
from grpaint.judge import evaluate
from grpaint.recipe.catalog import CATALOG, find_piece
from grpaint.recipe.config import open_recipe, stage_of
from grpaint.recipe.settings import Evaluation
from grpaint.scenes.world import SceneData
from grpaint.storage.files import read_weights
from tiny_runs import EMBEDDED

ROOT = Path(__file__).parent.parent
KINDS = sorted(START)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_base_is_small_and_half_precision(kind: str) -> None:
    file = START[kind]
    tensors, header = read_weights(file)
    assert file.stat().st_size <= 6_000_000
    assert sum(tensor.numel() for tensor in tensors.values()) <= 3_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert header["parametrisation"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_base_leaves_headroom_for_reinforcement_learning(kind: str) -> None:
    """The recipe's header says 35% to 55% over more prompts; this sees 200 of them, so it allows for three errors."""
    policy = Scenes(parametrisation=kind).load(Runtime("cpu", "fp32"))
    line = evaluate(policy, SceneData(), Evaluation(prompts=200, probe=64))
    assert 0.25 <= line["strict"] <= 0.65
    assert line["background"] < 0.02


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_recipe_resolves_and_says_what_it_is(name: str) -> None:
    first = (ROOT / f"src/grpaint/recipes/{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    recipe, _ = open_recipe(name, stage_of(name))
    assert first.startswith("# ")
    assert first.endswith(".")
    assert recipe.train.iterations > 0


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group, known in CATALOG.items() for kind in known])
def test_every_name_in_the_catalog_is_there(group: str, kind: str) -> None:
    assert find_piece(group, kind, "test").__doc__


def test_the_example_runs_and_its_ratio_is_one() -> None:
    done = subprocess.run(
        [sys.executable, "examples/whole_run.py", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^before: .*\n +1  reward .*\nafter: ", done.stdout)
    assert len((ROOT / "examples/whole_run.py").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_reward_in_the_readme_trains(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_reward\.py\n(.*?)```", text, re.S)
    assert code
    assert code[1].strip().count("\n") < 10
    (tmp_path / "my_reward.py").write_text(code[1], encoding="utf-8")
    sets = re.findall(r"grpaint train (--set rewards\.red.*)", text)[0].split()
    small = (
        "train.iterations=2 train.prompts=2 train.group_size=4 evaluate.prompts=4 evaluate.probe=4 evaluate.guided=[]"
    )
    for setting in small.split():
        sets += ["--set", setting]
    command = [sys.executable, "-c", "from grpaint.cli import main; main()", "train", *sets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"reward/red": ' in (tmp_path / "runs/awm/metrics.jsonl").read_text(encoding="utf-8")
