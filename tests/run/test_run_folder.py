"""The run folder as the contract has it: files, keys, costs, and two equal runs."""

import datetime
import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny_runs
from grpaint.backends.scenes import Scenes
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import open_recipe
from grpaint.storage.reading import read_toml
from tiny_runs import NO_PICTURES, REWARD, TINY, TINY_SFT, command, lines, status

pytestmark = pytest.mark.usefixtures("small_network")

PENALTY = 'objective.penalty={kind="step-kl",beta=0.1}'
SETS = [*TINY, REWARD, PENALTY]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a penalty."""
    with tiny_runs.folder(tmp_path_factory.mktemp("run")) as here:
        assert command("train", "flow-grpo-fast", "--name", "one", sets=SETS).code == 0
    return here / "runs/one"


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def test_the_folder_has_what_the_contract_names(run):
    assert {path.name for path in run.iterdir()} == {
        "run.toml", "run.json", "metrics.jsonl", "evaluations.jsonl", "pictures.jsonl", "held-out.json", "report.html",
        "samples", "checkpoints",
    }  # fmt: skip
    assert (run / "samples/before-after.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["000002", "000004"]
    for checkpoint in (run / "checkpoints").iterdir():
        assert {path.name for path in checkpoint.iterdir()} == {
            "model.safetensors", "training.safetensors", "state.json",
        }  # fmt: skip


def test_run_json_says_what_ran_and_how_it_ended(run):
    facts = status(run)
    assert facts["status"] == "finished"
    assert facts["command"][:5] == ["grpaint", "train", "flow-grpo-fast", "--name", "one"]
    assert {"grpaint", "torch", "safetensors"} <= facts["versions"].keys()
    assert {"commit", "device", "precision", "threads"} <= facts.keys()
    start, end = (datetime.datetime.fromisoformat(facts[key]) for key in ("start", "end"))
    assert start <= end
    assert facts["device"] == "cpu"
    assert facts["reason"] is None


def test_a_line_an_iteration_with_the_names_of_the_contract(run):
    metrics = lines(run / "metrics.jsonl")
    assert [line["iteration"] for line in metrics] == [1, 2, 3, 4]
    named = {
        "reward/bright", "advantage/zero_spread_groups", "policy/ratio_error", "policy/clip_fraction", "policy/kl",
        "policy/update_to_weight", "cost/model_evaluations", "time/rollout_s", "time/reward_s", "time/update_s",
    }  # fmt: skip
    for line in metrics:
        assert named <= line.keys()
        steps = {key.rpartition("/")[2] for key in line if key.startswith("policy/ratio_error/")}
        assert len(steps) == 2
        for name in ("clip_fraction", "kl"):
            assert steps == {key.rpartition("/")[2] for key in line if key.startswith(f"policy/{name}/")}
        assert line["policy/ratio_error"] == 0
        assert line["policy/update_to_weight"] > 0
    assert metrics[0]["policy/kl"] == 0 < metrics[-1]["policy/kl"]


def test_kl_is_not_measured_without_a_penalty():
    assert command("train", "flow-grpo-fast", "--name", "plain", sets=[*TINY, REWARD, "train.iterations=1"]).code == 0
    (line,) = lines(Path("runs/plain/metrics.jsonl"))
    assert not [key for key in line if "kl" in key]


def test_evaluations_begin_before_training_and_end_after_it(run):
    judged = lines(run / "evaluations.jsonl")
    assert [line["iteration"] for line in judged] == [0, 2, 4]
    for line in judged:
        assert line["guidance"] == 1
        for name in ("strict", "soft", "background"):
            low, high = line[f"{name}_interval"]
            assert low - 1e-5 <= line[name] <= high + 1e-5  # written with five decimals
        assert sum(kind["prompts"] for kind in line["by_kind"].values()) == line["prompts"] == 6
        assert {"strict", "soft", "background"} <= next(iter(line["by_kind"].values())).keys()
        assert line["denoising_loss"] > 0
    assert judged[0]["base_guided"] is None
    assert len({line["denoising_loss"] for line in judged}) == 3


def test_the_base_is_also_judged_at_its_best_guidance():
    sets = [*SETS, "train.iterations=1", "evaluate.guided=[1.5, 3]", "evaluate.every=5", "evaluate.prompts=1"]
    assert command("train", "flow-grpo-fast", "--name", "guided", sets=sets).code == 0
    first, last = lines(Path("runs/guided/evaluations.jsonl"))
    assert first["base_guided"]["guidance"] in (1.5, 3)
    assert {"strict", "soft", "strict_interval", "by_kind"} <= first["base_guided"].keys()
    assert (first["iteration"], last["iteration"]) == (0, 1)
    assert "base_guided" not in last


def test_evaluations_judge_the_average_weights(run):
    spec = Scenes(start=str(run / "checkpoints/000004"))
    stored = load_file(run / "checkpoints/000004/training.safetensors")
    now = spec.load(Runtime()).net.state_dict()
    assert all(now[key.partition("/")[2]].equal(value) for key, value in stored.items() if key.startswith("average/"))
    assert any(not now[key.partition("/")[2]].equal(value) for key, value in stored.items() if "current/" in key)


@pytest.mark.parametrize(
    "sets",
    [
        [],
        [PENALTY],
        ["plan.start.kind=independent", "model.guidance=2.0"],
        ['plan.prune={at=[2],keep=[2]}', 'plan.window={kind="prefix",size=3}'],
        ["train.updates=3", "objective.minibatch=2"],
    ],
    ids=["plain", "penalty", "guided", "funnel", "updates"],
)  # fmt: skip
def test_costs_are_what_show_predicts(sets):
    sets = [*TINY, REWARD, "train.iterations=2", 'plan.window={kind="prefix",size=2}', "evaluate.every=9", *sets]
    evaluations = json.loads(command("show", "flow-grpo-fast", "--json", sets=sets).out)["costs"][
        "evaluations_iteration"
    ]
    assert command("train", "flow-grpo-fast", "--name", "cost", sets=sets).code == 0
    metrics = lines(Path("runs/cost/metrics.jsonl"))
    assert [line["advantage/zero_spread_groups"] for line in metrics] == [0, 0]
    assert [line["cost/model_evaluations"] for line in metrics] == [evaluations, 2 * evaluations]
    assert metrics[0]["cost/evaluation_model_evaluations"] == 6 * 2 + 6


@pytest.mark.parametrize(("words", "sets"), [(("train", "flow-grpo-fast"), SETS), (("sft",), TINY_SFT)], ids=str)
def test_equal_runs_differ_in_time_alone(words, sets, tmp_path):
    for name in ("one", "two"):
        assert command(*words, "--name", name, sets=[*sets, "train.iterations=2"]).code == 0
    tiny_runs.same(tmp_path / "runs/one", tmp_path / "runs/two")
    assert Path("runs/one/run.toml").read_bytes() == Path("runs/two/run.toml").read_bytes()


def test_another_seed_is_another_run():
    for seed in (0, 1):
        assert (
            command(
                "train", "flow-grpo-fast", "--name", str(seed), sets=[*SETS, "train.iterations=1", f"train.seed={seed}"]
            ).code
            == 0
        )
    one, other = (tiny_runs.timeless(Path(f"runs/{seed}/metrics.jsonl")) for seed in (0, 1))
    assert one[0]["policy/grad_norm"] != other[0]["policy/grad_norm"]


def test_run_toml_repeats_the_run(run, tmp_path):
    settings = read_toml(run / "run.toml")
    assert open_recipe(str(run / "run.toml"), "train")[1] == settings
    assert settings["train"]["optimizer"]["kind"] == "adamw"
    assert command("train", str(run / "run.toml"), "--name", "again").code == 0
    tiny_runs.same(run, tmp_path / "runs/again")


def test_a_guided_run_is_judged_without_guidance(run):
    judged = [lines(path / "evaluations.jsonl")[0] for path in (run, _guided())]
    assert judged[0] == judged[1]
    report = json.loads(command("evaluate", "runs/guided", "--json").out)
    assert report["denoising_loss"] == lines(Path("runs/guided/evaluations.jsonl"))[-1]["denoising_loss"]


def _guided():
    start = ["train.iterations=1", "model.guidance=2.0"]
    assert command("train", "flow-grpo-fast", "--name", "guided", sets=[*SETS, *start]).code == 0
    return Path("runs/guided")


def test_an_sft_run_keeps_the_same_folder():
    assert command("sft", "--name", "base", sets=TINY_SFT).code == 0
    metrics, judged = (lines(Path("runs/base") / f"{name}.jsonl") for name in ("metrics", "evaluations"))
    assert [line["iteration"] for line in metrics] == [1, 2, 3, 4]
    assert [line["cost/model_evaluations"] for line in metrics] == [3 * 4 * n for n in (1, 2, 3, 4)]
    assert metrics[-1]["sft/denoising"] < metrics[0]["sft/denoising"]
    assert [line["iteration"] for line in judged] == [0, 2, 4]
    assert (
        command(
            "train", "flow-grpo-fast", "--name", "rl", sets=[*SETS, "model.start=runs/base/checkpoints/000004"]
        ).code
        == 0
    )
    first = lines(Path("runs/rl/evaluations.jsonl"))[0]
    assert first["denoising_loss"] == pytest.approx(judged[-1]["denoising_loss"], rel=1e-3)  # stored in fp16


def test_the_newest_checkpoints_and_the_best_stay(monkeypatch):
    scores = {0: 0.2, 1: 0.3, 2: 0.9, 3: 0.5, 4: 0.9, 5: 0.1, 6: 0.4}
    monkeypatch.setattr("grpaint.commands.train.judging.RecipeJudge.evaluate", _judge_as(scores))
    sets = [*SETS, "train.iterations=6", "evaluate.every=1", "checkpoint.every=1", "evaluate.pictures=0"]
    assert command("train", "flow-grpo-fast", "--name", "best", sets=[*sets, "checkpoint.keep=2"]).code == 0
    assert [path.name for path in sorted(Path("runs/best/checkpoints").iterdir())] == ["000002", "000005", "000006"]
    assert not list(Path("runs/best/samples").iterdir())


def test_a_better_evaluation_is_saved_between_checkpoints(monkeypatch):
    monkeypatch.setattr(
        "grpaint.commands.train.judging.RecipeJudge.evaluate", _judge_as({0: 0.5, 1: 0.9, 2: 0.4, 3: 0.3})
    )
    sets = [*SETS, "train.iterations=3", "evaluate.every=1", "checkpoint.every=9", "checkpoint.keep=1"]
    assert command("train", "flow-grpo-fast", "--name", "best", sets=[*sets, "evaluate.pictures=0"]).code == 0
    assert [path.name for path in sorted(Path("runs/best/checkpoints").iterdir())] == ["000001", "000003"]


def _judge_as(scores):
    def judge(_, iteration):
        strict = scores[iteration]
        rest = {"soft": 0.5, "soft_interval": [0, 1], "background": 0.1, "denoising_loss": 1.0}
        head = {"strict": strict, "strict_interval": [0, 1], "prompts": 2, "steps": 2}
        return head | rest | {"strict_by_prompt": [strict, strict]}, NO_PICTURES

    return judge


def test_an_adapter_run_saves_a_whole_model_and_little_else():
    sets = [*SETS, "train.iterations=1", "model.lora={rank=2,alpha=4}"]
    assert command("train", "flow-grpo-fast", "--name", "lora", sets=sets).code == 0
    checkpoint = Path("runs/lora/checkpoints/000001")
    stored = load_file(checkpoint / "training.safetensors")
    assert all("lora" in name for name in stored if name.startswith("current/"))
    assert (checkpoint / "training.safetensors").stat().st_size < (checkpoint / "model.safetensors").stat().st_size / 4
    merged = load_file(checkpoint / "model.safetensors")
    assert merged.keys() == Scenes(start="random").load(Runtime()).net.state_dict().keys()


def test_half_precision_checkpoints_halve_the_file_not_the_state():
    sets = [*SETS, "train.iterations=1"]
    assert command("train", "flow-grpo-fast", "--name", "half", sets=[*sets, "checkpoint.precision=fp16"]).code == 0
    checkpoint = Path("runs/half/checkpoints/000001")
    assert {str(t.dtype) for t in load_file(checkpoint / "model.safetensors").values()} == {"torch.float16"}
    assert {str(t.dtype) for t in load_file(checkpoint / "training.safetensors").values()} == {"torch.float32"}


def test_loggers_see_the_same_numbers():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sets = [*SETS, "train.iterations=1", "loggers.board.kind=tensorboard"]
    assert command("train", "flow-grpo-fast", "--name", "logged", sets=sets).code == 0
    events = accumulator.EventAccumulator("runs/logged/tensorboard").Reload()
    (line,) = lines(Path("runs/logged/metrics.jsonl"))
    assert events.Scalars("policy/grad_norm")[0].value == pytest.approx(line["policy/grad_norm"])
    assert [event.step for event in events.Scalars("denoising_loss")] == [0, 1]


def test_a_logger_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    end = command("train", "flow-grpo-fast", "--name", "logged", sets=[*SETS, "loggers.mine.kind=wandb"])
    assert end.code == 2
    assert end.err == "grpaint: loggers.mine: logger wandb needs an optional package: pip install 'grpaint[wandb]'\n"
    assert not list(Path("runs").iterdir())
