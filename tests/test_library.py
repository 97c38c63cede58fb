"""``import grpaint`` as a library: its names, its verbs against the commands, and the programs of the pages."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import grpaint
import tiny_runs
from grpaint.library import set_arguments
from grpaint.recipe.config import parse_sets
from tiny_runs import REWARD, TINY, TINY_SFT, command

ROOT = Path(__file__).parent.parent
NAMES = """
AdvantageWeightedMatching CheckpointError Closed ConfigError Cps DanceSde Ddim DiffusionNft FlowSde GroupNorm
GrpaintError Ode PerReward Plan PolicyGradient PpoClip Prompt Random RewardError RewardSet Run RunError Shared Sliding
Whole evaluate export load open_recipe roll sample sft step train
"""

pytestmark = pytest.mark.usefixtures("small_network")


@dataclass(frozen=True)
class Red:
    """A reward with a setting."""

    channel: int = 0

    def __call__(self, images, prompts):
        return images[:, self.channel].mean((1, 2)) + 0.1 * torch.rand(len(images))


def ramp(images, prompts):
    return images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)


def tiny(sets=TINY):
    """Settings of a tiny run as a program gives them: plain values by key."""
    return {".".join(path): value for path, value in parse_sets(sets)}


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def test_its_names_are_pinned_and_typed_as_they_are_found():
    assert sorted(grpaint.__all__) == NAMES.split()
    assert set(grpaint.__all__) <= set(dir(grpaint))
    tree = ast.parse(Path(grpaint.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    modules = {alias.asname: f"grpaint.{node.module}" for node in tree.body for alias in node.names}
    for name in grpaint.__all__:
        value = getattr(grpaint, name)
        assert value is getattr(sys.modules[modules[name]], name)
        assert inspect.getdoc(value)
    with pytest.raises(AttributeError, match="trian"):
        grpaint.trian  # noqa: B018


def test_no_name_is_a_submodules():
    submodules = {module.name for module in pkgutil.iter_modules(grpaint.__path__)}
    assert not submodules & set(grpaint.__all__)
    assert not any(isinstance(getattr(grpaint, name), types.ModuleType) for name in grpaint.__all__)


def test_importing_it_imports_nothing_heavy():
    code = "import sys, grpaint; dir(grpaint); sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_is_that_of_the_command():
    run = grpaint.train("flow-grpo-fast", tiny([*TINY, REWARD]), name="library")
    assert command("train", "flow-grpo-fast", "--name", "typed", sets=[*TINY, REWARD]).code == 0
    by_command = grpaint.Run(Path("runs/typed"))
    assert run.path == Path("runs/library")
    assert run.status == "finished"
    assert [line["iteration"] for line in run.metrics] == [1, 2, 3, 4]
    assert [line["iteration"] for line in run.evaluations] == [0, 2, 4]
    assert [line["strict"] for line in run.evaluations] == [line["strict"] for line in by_command.evaluations]
    assert run.settings == by_command.settings
    assert run.page.is_file()
    last = "checkpoints/000004/model.safetensors"
    assert (run.path / last).read_bytes() == (by_command.path / last).read_bytes()

    drawn = grpaint.sample(run, ["a red circle"], seed=3)
    end = command("sample", "typed", "a red circle", "--seed", "3")
    picture = torch.frombuffer(bytearray(Image.open(end.out.strip()).tobytes()), dtype=torch.uint8)
    picture = picture.view(256, 256, 3)[4::8, 4::8].permute(2, 0, 1) / 255  # enlarged eight times
    assert (drawn[0].clamp(0, 1) - picture).abs().max() <= 1 / 255
    assert torch.equal(grpaint.sample(grpaint.load(run), ["a red circle"], seed=3, steps=2), drawn)

    line = grpaint.evaluate(run, {"evaluate.prompts": 4}, trust=True)
    assert len(line["strict_by_prompt"]) == 4
    assert "reward/bright" in line
    models = {"base": f"{run.path}:base", "tuned": run}
    both = grpaint.evaluate(models, {"evaluate.prompts": 4}, few=True, trust=True)
    assert list(both["sources"]) == ["base", "tuned"]
    assert Path("evaluation/evaluation.html").is_file()


@dataclass(frozen=True)
class Straight:
    """A sampler without noise, as the ODE's."""

    def __call__(self, here, there):
        return there.sigma, 0.0


def test_code_that_a_saved_model_names_needs_trust():
    settings = tiny() | {"evaluate.sampler": Straight(), "train.iterations": 1, "evaluate.every": 1}
    run = grpaint.train("flow-grpo-fast", settings, name="own")
    for refused in (grpaint.load, lambda source: grpaint.sample(source, ["a red circle"]), grpaint.evaluate):
        with pytest.raises(grpaint.ConfigError, match=r"evaluate\.sampler\.kind = .*Straight"):
            refused(run)
    own = grpaint.sample(run, ["a red circle"], trust=True)
    assert torch.equal(own, grpaint.sample(grpaint.load(run, trust=True), ["a red circle"], steps=2))


def test_it_resumes_to_the_same_weights():
    settings = tiny() | {"rewards.bright": {"kind": ramp}}
    whole = grpaint.train("flow-grpo-fast", settings, name="whole")
    assert whole.settings["rewards"]["bright"]["kind"] == f"{__name__}:ramp"
    grpaint.train("flow-grpo-fast", settings | {"train.iterations": 2}, name="half")
    half = grpaint.train(settings={"train.iterations": 4}, name="half", resume=True)
    last = "checkpoints/000004/model.safetensors"
    assert (half.path / last).read_bytes() == (whole.path / last).read_bytes()


def test_a_supervised_run_and_the_model_of_a_recipe():
    run = grpaint.sft("scenes/sft", tiny(TINY_SFT), name="sft")
    assert run.settings["stage"] == "sft"
    base = grpaint.load(grpaint.open_recipe("flow-grpo-fast", {"model.start": "random"}))
    images = grpaint.sample(base, ["a red circle", grpaint.Prompt("a blue square")], steps=2, weights="reference")
    assert images.shape == (2, 3, 32, 32)


def test_settings_take_pieces_classes_functions_and_tables():
    recipe = grpaint.open_recipe(
        "flow-grpo-fast",
        {
            "plan.sampler": grpaint.FlowSde(eta=0.6),
            "plan.window": grpaint.Whole(),
            "rewards.red": {"kind": Red, "channel": 1, "weight": 0.5},
            "rewards.ramp.kind": ramp,
            "objective.penalty": None,
        },
    )
    assert recipe.plan.sampler == grpaint.FlowSde(eta=0.6)
    assert recipe.plan.window == grpaint.Whole()
    assert recipe.plan.steps == grpaint.open_recipe("flow-grpo-fast").plan.steps
    assert recipe.rewards["red"].reward == Red(1)
    assert recipe.rewards["red"].weight == 0.5
    assert recipe.rewards["ramp"].reward is ramp
    assert "checker" in recipe.rewards
    alone = grpaint.open_recipe("flow-grpo-fast", {"rewards": {"red": Red(2)}})
    assert {name: item.reward for name, item in alone.rewards.items()} == {"red": Red(2)}


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30)
@given(PLAIN)
def test_plain_values_come_back_from_their_arguments(value):
    (item,) = set_arguments({"a.b": value})
    assert parse_sets([item]) == [(["a", "b"], value)]


def test_what_run_toml_cannot_hold_is_refused_in_one_line():
    def within(images, prompts):
        return images.mean((1, 2, 3))

    for value, reason in ((within, "top of a module"), (lambda images, prompts: 0, "top of a module")):
        with pytest.raises(grpaint.ConfigError, match=rf"^rewards\.red\.kind = .*{reason}"):
            grpaint.open_recipe("flow-grpo-fast", {"rewards.red.kind": value})
    with pytest.raises(grpaint.ConfigError, match=r"^train\.seed: a value of Tensor, which TOML cannot hold"):
        grpaint.open_recipe("flow-grpo-fast", {"train.seed": torch.tensor(1)})
    with pytest.raises(grpaint.ConfigError, match=r"^train\.iteration: no such setting\. Did you mean"):
        grpaint.train("flow-grpo-fast", {"train.iteration": 1})
    with pytest.raises(grpaint.ConfigError, match="no captions"):
        grpaint.sample("nowhere", [])
    with pytest.raises(grpaint.ConfigError, match='evaluate: "my model": a name has letters'):
        grpaint.evaluate({"my model": "nowhere", "other": "nowhere"})
    with pytest.raises(grpaint.ConfigError, match="nowhere: neither a run folder"):
        grpaint.load("nowhere")
    assert not Path("runs").exists()


def test_the_programs_of_the_page_run(tmp_path):
    text = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    whole, loop = re.findall(r"```python\n(.*?)```", text, re.S)
    assert whole.count("\n") <= 30
    extra = tomllib.loads("v = { evaluate = { prompts = 4, probe = 4, steps = 2, guided = [], pictures = 1 } }")["v"]
    whole = whole.replace('"train.iterations": 20,', f'"train.iterations": 2, "train.prompts": 2, **{extra!r},')
    loop = loop.replace("range(10)", "range(1)").replace("data.prompts(6", "data.prompts(2")
    for name, code in (("whole", whole), ("loop", loop)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, f"{name}.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "torch.Size([" in done.stdout
    assert grpaint.Run(tmp_path / "runs/red").settings["rewards"]["red"]["kind"] == "__main__:red_left"


def test_the_pieces_of_the_page_train_by_name_and_as_objects():
    text = (ROOT / "docs/pieces.md").read_text(encoding="utf-8")
    pieces, program = re.findall(r"```python\n(.*?)```", text, re.S)
    Path("pieces.py").write_text(pieces, encoding="utf-8")
    shown, trained = re.findall(r"^grpaint (show|train) flow-grpo-fast((?:.*\\\n)*.*)", text, re.M)
    end = command("show", "flow-grpo-fast", *shown[1].split())
    assert end.code == 0, end.err
    assert end.out.count("noisy, trained") == 2
    small = [REWARD, *(item for item in TINY if not item.startswith("plan.window."))]
    end = command("train", "flow-grpo-fast", *trained[1].replace("\\", "").split(), sets=small)
    assert end.code == 0, end.err
    by_name = grpaint.Run(Path("runs/mine"))
    assert by_name.settings["advantage"] == {"kind": "pieces.py:Ranks", "power": 1.0}
    assert max(line["policy/ratio_error"] for line in by_name.metrics) < 1e-5

    program = program.replace('"train.iterations": 20,', f"**{tiny(small)!r},").replace('name="mine"', 'name="objects"')
    Path("program.py").write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = grpaint.Run(Path("runs/objects")).settings
    assert settings["plan"]["sampler"] == {"kind": "pieces:EarlyNoise", "eta": 0.5}
    assert settings["plan"]["window"]["kind"] == "pieces:Alternate"
    assert settings["objective"]["surrogate"]["kind"] == "pieces:reinforce"
    with pytest.raises(grpaint.ConfigError, match=r"^plan\.window\.skip_last must lie in 1\.\.6 for 8 steps, got 7$"):
        grpaint.open_recipe(
            "flow-grpo-fast", {"plan.window": {"kind": "pieces.py:Alternate", "skip_last": 7}, "plan.steps": 8}
        )
