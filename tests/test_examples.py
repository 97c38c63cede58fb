"""What a reader is shown: the example of a whole run, and the README's own words."""

import ast
import contextlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer.main
from nbclient import NotebookClient

from grpaint import cli
from grpaint.scenes.world import SceneData
from tiny_runs import command

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("small_bases")


@pytest.mark.slow
def test_the_example_runs_at_its_size() -> None:
    done = subprocess.run(
        [sys.executable, "examples/whole_run.py", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^before: .*\n +1  reward .*\nafter: ", done.stdout)


def test_the_example_runs_and_its_ratio_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "examples/whole_run.py"
    spec = importlib.util.spec_from_file_location("whole_run", file)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    held_out = SceneData.held_out
    monkeypatch.setattr(SceneData, "held_out", lambda self, count, seed: held_out(self, 4, seed))
    monkeypatch.setattr(example, "PROMPTS", 2)
    monkeypatch.setattr(example, "GROUP", 4)
    example.main(1)
    match = re.search(r"^before: .*\n +1  reward .* \|ratio - 1\| (\S+)\nafter: ", capsys.readouterr().out)
    assert match
    assert float(match[1]) <= 1e-6
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_reward_in_the_readme_trains(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_reward\.py\n(.*?)```", text, re.S)
    assert code
    assert code[1].strip().count("\n") < 10
    (tmp_path / "my_reward.py").write_text(code[1], encoding="utf-8")
    sets = re.findall(r"grpaint train (--set rewards\.red.*)", text)[0].split()
    small = (
        "train.iterations=2 train.prompts=2 train.group_size=4 evaluate.prompts=4 evaluate.probe=4 evaluate.guided=[] "
        "evaluate.steps=2 anchor.batch=4"
    )
    for setting in small.split():
        sets += ["--set", setting]
    with contextlib.chdir(tmp_path):
        end = command("train", *sets)
    assert end.code == 0, end.err
    assert '"reward/red": ' in (tmp_path / "runs/awm/metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_pages_outside_the_site_link_to_files_that_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing


def test_the_readme_is_short_and_its_commands_are_on_their_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
    listed = re.findall(r"^ +grpaint ([a-z-]+)", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), re.M)
    group = typer.main.get_command(cli.app)
    assert set(listed) == {name for name, each in group.commands.items() if not each.hidden}


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2  # as it is read without running it
    assert not any("file://" in str(output) or str(Path.home()) in str(output) for output in outputs)
    sizes = {"train.prompts": 2, "anchor.batch": 2, "evaluate.every": 1, "evaluate.prompts": 2, "evaluate.probe": 2}
    small = f'"train.iterations": 1, **{sizes},'
    for cell in notebook.cells:
        cell.source = re.sub(r'"train.iterations": 80,.*?"evaluate.prompts": 128,', small, cell.source, flags=re.S)
    assert small in "".join(cell.source for cell in notebook.cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert tmp_path.joinpath("runs/quickstart/report.html").is_file()
    assert "'background'" in notebook.cells[-2].outputs[0]["data"]["text/plain"]


FILES = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_benchmarks_and_examples_import_names_that_exist(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grpaint"):
            for alias in node.names:
                module = importlib.import_module(node.module)
                exists = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert exists, f"line {node.lineno}: {alias.name}"
