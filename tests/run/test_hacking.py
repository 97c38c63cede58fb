"""The alarm of reward hacking: on lines made by hand, on lines that runs left, and what it does to a run."""

import json
from pathlib import Path

import pytest

import tiny_runs
from grpaint.measures.hacking import JUDGES, Watch, alarm_text, hacking_alarm
from tiny_runs import NO_PICTURES, REWARD, TINY, command, status

pytestmark = pytest.mark.usefixtures("small_network")

RECORDED = Path(__file__).parent / "hacking"


def line(**means):
    """An evaluation of 16 prompts whose values lie around the means."""
    out = {"score": "strict", "prompts": 16}
    for name, mean in means.items():
        out[name] = mean
        if name != "denoising_loss":
            out[f"{name}_by_prompt"] = [mean * (1 + 0.02 * (i % 4 - 1.5)) for i in range(16)]
    return out


BASE = {"reward": 0.5, "strict": 0.5, "image/edge_density": 0.1, "background": 0.006, "denoising_loss": 0.04}


@pytest.mark.parametrize(
    ("after", "alarm"),
    [
        ({"reward": 0.6}, []),
        ({"reward": 0.6, "image/edge_density": 0.04}, ["image/edge_density"]),
        ({"reward": 0.6, "image/edge_density": 0.2}, ["image/edge_density"]),
        ({"reward": 0.6, "image/edge_density": 0.12}, []),
        ({"reward": 0.5, "image/edge_density": 0.04}, []),
        ({"reward": 0.4, "image/edge_density": 0.04}, []),
        ({"reward": 0.6, "background": 0.001}, []),
        ({"reward": 0.6, "background": 0.06}, ["background"]),
        ({"reward": 0.6, "denoising_loss": 0.09}, ["denoising_loss"]),
        ({"reward": 0.6, "denoising_loss": 0.07}, []),
        ({"reward": 0.6, "strict": 0.3}, ["strict"]),
        ({"reward": 0.6, "strict": 0.9}, []),
    ],
    ids=str,
)
def test_a_judge_must_leave_the_base_while_the_reward_rises(after, alarm):
    alarm_raised = hacking_alarm(line(**BASE), line(**BASE | after), Watch())
    assert list(alarm_raised["judges"]) == alarm if alarm else alarm_raised is None
    if alarm_raised:
        assert f"reward 0.5 -> 0.6 while {alarm[0]}" in alarm_text(alarm_raised)


def test_chance_alone_raises_no_alarm():
    after = line(**BASE | {"reward": 0.6})
    after["image/edge_density"] = 0.3
    after["image/edge_density_by_prompt"] = [0.1] * 15 + [3.3]
    assert hacking_alarm(line(**BASE), after, Watch()) is None
    assert hacking_alarm(line(**BASE), after, Watch(errors=0.5))


def test_a_reward_of_weight_0_is_a_judge():
    before, after = line(**BASE, **{"reward/aside": 2.0}), line(**BASE | {"reward": 0.6, "reward/aside": 1.0})
    assert hacking_alarm(before, after, Watch()) is None
    assert list(hacking_alarm(before, after, Watch(), ["reward/aside"])["judges"]) == ["reward/aside"]


def test_another_watch_factor_can_be_set():
    after = line(**BASE | {"reward": 0.6, "background": 0.015})
    assert hacking_alarm(line(**BASE), after, Watch()) is None
    assert hacking_alarm(line(**BASE), after, Watch(factors={"background": 1.5}))
    for wrong in ({"background": 1.0}, {"backgrund": 2.0}):
        with pytest.raises(ValueError, match=r"factors\.backg"):
            Watch(factors=wrong)


@pytest.mark.parametrize(("name", "began"), [("dark", 36), ("checker", None)])
def test_recorded_runs(name, began):
    lines = [json.loads(text) for text in (RECORDED / f"{name}.jsonl").read_text().splitlines()]
    alarms = [old["iteration"] for old in lines[1:] if hacking_alarm(lines[0], old, Watch())]
    assert (alarms[0] if alarms else None) == began
    assert JUDGES.keys() <= lines[0].keys()


@pytest.fixture
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("stop", [True, False])
def test_the_best_before_it_stays_and_the_run_may_stop(stop, monkeypatch):
    strict, edges = {0: 0.5, 1: 0.7, 2: 0.6, 3: 0.9, 4: 0.95}, {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.02, 4: 0.01}

    def judge(_, iteration):
        means = {"reward": 0.5 + 0.1 * iteration, "strict": strict[iteration], "image/edge_density": edges[iteration]}
        rest = {"strict_interval": [0, 1], "soft": 0.5, "background": 0.1, "denoising_loss": 0.04, "steps": 2}
        return line(**means) | rest, NO_PICTURES

    monkeypatch.setattr("grpaint.commands.train.judging.RecipeJudge.evaluate", judge)
    sets = [*TINY, REWARD, "evaluate.every=1", "evaluate.pictures=0", "checkpoint.every=9", "checkpoint.keep=1"]
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*sets, f"watch.stop={str(stop).lower()}"])
    run = Path("runs/it")
    checkpoints = [path.name for path in sorted((run / "checkpoints").iterdir())]
    alarm = status(run)["hacking"]
    assert (alarm["began"], alarm["clean"], alarm["best_before"]) == (3, 2, 1)
    judged = tiny_runs.lines(run / "evaluations.jsonl")
    assert ["hacking" in old for old in judged] == [False, False, False, True, True][: len(judged)]
    if stop:
        assert (end.code, end.err.count("\n"), len(judged)) == (1, 1, 4)
        assert "reward hacking since iteration 3: reward 0.5 -> 0.8 while image/edge_density 0.1 -> 0.02" in end.err
        assert "runs/it/checkpoints/000001" in end.err
        assert checkpoints == ["000001", "000003"]
    else:
        assert (end.code, checkpoints) == (0, ["000001", "000004"])
        assert "reward hacking? from iteration 3 (none at 2)" in end.out
        assert judged[-1]["hacking"]["began"] == 3
