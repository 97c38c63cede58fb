"""Every method that ships: it runs, it is resumed in mid-window and mid-funnel, and two differ by a short diff."""

import difflib
from pathlib import Path

import pytest

import tiny_runs
from grpaint.recipe.config import locate, stage_of
from tiny_runs import EMBEDDED, QUICK, command, lines

pytestmark = pytest.mark.usefixtures("small_bases")

METHODS = [name for name in EMBEDDED if stage_of(name) == "train"]
SMALL = (*QUICK, "train.prompts=2", "evaluate.prompts=5", "evaluate.probe=4")
FITTED = {
    "pro-grpo": ("train.group_size=8", "plan.prune.keep=[6, 4]", "plan.prune.audit=2"),
    "pro-grpo-flash": ("train.group_size=6", "plan.prune.keep=[5, 4]"),
    "ovf": ("train.group_size=6", "advantage.keep=4"),
    "dance-grpo": ("train.group_size=6", "advantage.keep=4"),
    "mix-grpo": ("train.group_size=4", "plan.window.every=1"),
    "mix-grpo-flash": ("train.group_size=4", "plan.window.every=1"),
    "ddpo": ("train.prompts=6",),
}


REWARD_CALLS = {  # of the first iteration, two prompts: previews, then finished images
    "scenes/pro-grpo": 2 * (8 + 6) + 2 * 4,
    "scenes/tafs-grpo": 2 * (4 + 4) + 2 * 4,
    "scenes/flow-grpo-fast": 2 * 4,
}


def fitted(method: str) -> list[str]:
    extra = FITTED.get(method.partition("/")[2], ("train.group_size=4",))
    anchor = ["anchor.batch=2"] if "[anchor]" in locate(method).read_text() else []
    return [*SMALL, *extra, *anchor, *([] if "4-steps" in method or "tafs" in method else ["evaluate.steps=2"])]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_and_is_resumed_exactly(method: str, tmp_path: Path) -> None:
    with tiny_runs.folder(tmp_path):
        end = command("train", method, "--name", "straight", sets=fitted(method))
        assert end.code == 0, end.err
        tiny_runs.copy_cut_after(2, Path("runs/straight"), Path("runs/cut"))
        end = command("train", "--name", "cut", "--resume")
        assert end.code == 0, end.err
    tiny_runs.same(tmp_path / "runs/straight", tmp_path / "runs/cut")
    first = lines(tmp_path / "runs/straight/metrics.jsonl")
    assert all(line.get("policy/ratio_error", 0) <= 1e-6 for line in first)
    assert any(line.get("policy/grad_norm", 0) > 0 for line in first)
    if method in REWARD_CALLS:
        assert first[0]["cost/reward_calls"] == REWARD_CALLS[method]
    if method == "scenes/pro-grpo":
        assert [n for n, line in enumerate(first, 1) if "prune/rank_correlation/5" in line] == [2, 4]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("scenes/mix-grpo", "scenes/mix-grpo-flash"),
        ("scenes/mix-grpo-flash", "scenes/mix-grpo-flash-star"),
        ("scenes/flow-grpo", "scenes/pro-grpo"),
        ("scenes/flow-grpo", "scenes/flow-cps"),
        ("scenes/flow-grpo", "scenes/ovf"),
        ("scenes/flow-grpo-fast", "scenes/mix-grpo"),
    ],
)
def test_two_methods_differ_in_a_short_diff(one: str, other: str) -> None:
    def settings(name: str) -> list[str]:
        return [line for line in locate(name).read_text().splitlines() if not line.startswith("#")]

    changed = [line for line in difflib.ndiff(settings(one), settings(other)) if line[:2] in ("+ ", "- ")]
    assert 0 < len(changed) <= 14, changed


def test_the_tuned_model_may_leave_the_last_steps_to_the_base(tmp_path: Path) -> None:
    with tiny_runs.folder(tmp_path):
        name = "scenes/flow-grpo-fast"
        sets = [*fitted(name), "train.learning_rate=0.01", "evaluate.steps=4"]
        assert command("train", name, "--name", "it", sets=sets).code == 0
        tuned, mixed, base = (
            command("evaluate", "it", "--json", sets=[f"evaluate.tuned_share={share}"]).out
            for share in (1.0, 0.5, 0.01)
        )
        assert '"tuned_share": 0.5' in mixed
        assert len({tuned.partition('"soft"')[2], mixed.partition('"soft"')[2], base.partition('"soft"')[2]}) == 3
        drawn = command("sample", "it", "a red circle", sets=["evaluate.tuned_share=0.5"])
        assert drawn.out.strip().endswith("00-a-red-circle-tuned-0.5.png")
        file = "runs/it/checkpoints/000004/model.safetensors"
        Path("alone.safetensors").write_bytes(Path(file).read_bytes())
        end = command("evaluate", "alone.safetensors", sets=["evaluate.tuned_share=0.5"])
        assert end.code == 2
        assert end.err.count("\n") == 1
        assert "tuned_share" in end.err


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("scenes/flow-grpo-fast", "train.retain=true|train.updates=2", "retain keeps graphs"),
        ("scenes/flow-grpo-fast", "train.retain=true|objective.minibatch=4", "train.retain"),
        (
            "scenes/mix-grpo",
            "train.retain=true|plan.weights=behaviour|behaviour.slope=0.5|behaviour.most=0.9",
            "of the weights that sample",
        ),
        ("scenes/flow-grpo-fast", "model.lora.rank=4|model.train_text=true", "train_text"),
        ("scenes/tafs-grpo", "plan.previews=false", "plan.previews = true"),
        ("scenes/mix-grpo-flash", "plan.prune={at=[5],keep=[4]}", "prune.close"),
        ("scenes/mix-grpo-flash", 'plan.outside={kind="cps",eta=0.5}', "noise-free"),
        ("scenes/pro-grpo", "plan.prune.at=[5, 10]", "prune.at must lie in 1..9"),
        ("scenes/tafs-grpo", "plan.steps=1", "plan.steps = 1: the only step ends in the finished image"),
        ("scenes/flow-grpo", "plan.steps=1|plan.window.skip_last=0", "plan.steps = 1"),
        ("scenes/flow-grpo", "plan.steps=2|plan.sampler.kind=lcm|plan.window.skip_last=0", "adds no noise at step 1"),
        ("scenes/mix-grpo", "plan.window.size=11", "must fit in 10 steps"),
        ("scenes/dance-grpo", "plan.sampler.kind=ode", "likelihood"),
        ("scenes/ovf", "advantage.keep=1", "keep must be at least 2"),
        ("scenes/ovf", 'advantage.of={kind="step-aware"}', "one per step"),
        ("scenes/dance-grpo", 'advantage.of={kind="step-aware"}', "one per step"),
        ("scenes/mix-grpo", "plan.base_after=0.8", "evaluate.tuned_share"),
    ],
)
def test_pieces_that_do_not_go_together_are_refused_before_weights_load(
    method: str, setting: str, words: str, tmp_path: Path
) -> None:
    with tiny_runs.folder(tmp_path):
        end = command("train", method, sets=["model.start=nowhere.safetensors", *setting.split("|")])
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert words in end.err
