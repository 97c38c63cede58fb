"""Sampling in parts, each scored while the next is sampled: the same noise, the same order, the same numbers."""

import threading
from pathlib import Path

import pytest
import torch

import tiny_runs
from grpaint.backends.gaussian import GaussianModel
from grpaint.core import Cps, Prompt, RewardError
from grpaint.core.runtime import Runtime
from grpaint.learn import RewardSet, RewardTable
from grpaint.parallel.background import BackgroundCall
from grpaint.rollout import Funnel, Independent, Plan, Prefix, Reference, Shared, Whole, roll
from grpaint.rollout.parts import RolloutParts
from grpaint.rollout.rollout import Roller
from grpaint.rollout.solver import Tail
from tiny_runs import TINY, command, lines

pytestmark = pytest.mark.usefixtures("small_network")

PROMPTS = [Prompt(f"prompt {n}", reference=torch.full((3, 4, 4), n / 5)) for n in range(5)]
PLANS = {
    "independent": Plan(6, Cps(), Prefix(3), start=Independent()),
    "shared": Plan(6, Cps(), Prefix(3), start=Shared()),
    "reference": Plan(6, Cps(), Whole(), start=Reference(0.7, 0.6)),
    "funnel": Plan(6, Cps(), Prefix(3), prune=Funnel((2, 4), (4, 3), audit=1)),
    "tail": Plan(8, Cps(), Prefix(3), start=Shared(), tail=Tail()),
}


def bright(images, prompts, references):
    return images.mean((1, 2, 3)) * torch.tensor([1.0 + len(prompt.text) for prompt in prompts])


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_parts_are_the_rows_of_the_whole(plan, parts):
    policy = GaussianModel().load(Runtime())
    whole = roll(policy, PROMPTS, 6, plan, iteration=3, seed=7, score=bright)
    made = RolloutParts(Roller(policy, PROMPTS, 6, plan, (7, 3)), parts, bright)
    done = list(made)
    assert [len(part.group.unique()) for part in done] == {1: [5], 2: [3, 2], 5: [1] * 5}[parts]
    again = made.join(done)
    assert torch.equal(again.group, whole.group)
    assert torch.equal(again.references, whole.references)
    torch.testing.assert_close(again.x0, whole.x0)
    assert len(again.cond) == len(again.group)
    assert again.previews.keys() == whole.previews.keys()
    for step, scores in whole.previews.items():
        torch.testing.assert_close(again.previews[step], scores)
    assert [action.step for action in again.transitions] == [action.step for action in whole.transitions]
    for one, other in zip(again.transitions, whole.transitions, strict=True):
        assert torch.equal(one.rows, other.rows)
        for name in ("x", "x_next", "mean", "logp"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)


def test_tables_join():
    tables = [RewardTable({"a": torch.ones(2)}, {"a": 2.0}, {"a": torch.tensor([True, False])})] * 2
    joined = RewardTable.join(tables)
    assert joined.columns["a"].tolist() == [1.0] * 4
    assert joined.applies["a"].tolist() == [True, False] * 2
    assert joined.weights == {"a": 2.0}


STATEFUL = """
import time
calls = 0

def score(images, prompts):  # what it says depends on how often it was asked: order shows
    global calls
    calls += 1
    mine = calls
    time.sleep(0.05)
    assert mine == calls, "asked about two things at once"
    return images.mean((1, 2, 3)) + 0.1 * calls * (len(prompts[0].text) % 5 + 1) * (len(images) - 1) ** -0.5 * (
        images[:, 0, 0, 0] - images[0, 0, 0, 0])
"""


@pytest.mark.parametrize(
    "more", [(), ("plan.prune.at=[1]", "plan.prune.keep=[3]", "plan.prune.audit=2")], ids=["plain", "funnel"]
)
def test_overlap_changes_no_number(more, tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("reward.py").write_text(STATEFUL)
        for name in ("true", "false"):
            sets = [*TINY, tiny_runs.REWARD, "train.parts=3", f"train.overlap={name}", "train.iterations=2", *more]
            assert command("train", "flow-grpo-fast", "--name", name, sets=sets).code == 0
        tiny_runs.same(Path("runs/true"), Path("runs/false"))
        for line in lines(Path("runs/false/metrics.jsonl")):
            assert line["time/reward_s"] >= 0.15
            assert line["time/reward_wait_s"] > 0.1
            assert line["cost/reward_calls"] == (12 if not more else 21 if line["iteration"] == 1 else 22)


def test_a_part_that_cannot_be_scored_stops_the_run(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        sets = [*TINY, tiny_runs.REWARD, "train.parts=3"]
        Path("fault").write_text("nan")  # the third call: the last part of the first iteration, which has four rows
        Path("reward.py").write_text(tiny_runs.REWARD_FILE.replace("scores[5]", "scores[3]"))
        end = command("train", "flow-grpo-fast", "--name", "it", sets=sets)
    assert end.code == 1
    assert "reward bright returned nan for 1 images" in end.err


@pytest.mark.parametrize(
    ("sets", "words"),
    [(["train.parts=4"], "parts must not exceed prompts = 3"), (["train.parts=2", "train.retain=true"], "retain")],
)
def test_parts_that_cannot_be_are_refused(sets, words, tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("train", "flow-grpo-fast", sets=[*TINY, *sets])
    assert end.code == 2
    assert words in end.err


class Away:
    """A reward in another process, as far as the set of rewards can tell."""

    def __init__(self, meeting, fails=False):
        self.meeting, self.fails = meeting, fails

    def start(self):
        return []

    def stop(self):
        pass

    def __call__(self, images, prompts):
        self.meeting.wait(600)
        if self.fails:
            raise RewardError("it is gone")
        return images.mean((1, 2, 3))


def test_external_rewards_are_called_concurrently():
    meeting = threading.Barrier(3)  # passes only where all three are asked at once
    here = lambda images, prompts: meeting.wait(600) * 0 + images.mean((1, 2, 3))  # noqa: E731
    images = torch.rand(5, 3, 2, 2)
    rewards = RewardSet({"a": Away(meeting), "here": here, "b": Away(meeting)}, {})
    assert list(rewards.score(images, PROMPTS).columns) == ["a", "here", "b"]
    rewards = RewardSet({"a": Away(meeting, True), "here": here, "b": Away(meeting, True)}, {})
    with pytest.raises(RewardError, match="reward a: it is gone"):
        rewards.score(images, PROMPTS)


def test_a_background_call_raises_its_error_and_keeps_the_thread_count():
    torch.set_num_threads(1)
    assert BackgroundCall(torch.get_num_threads).result() == 1
    later = BackgroundCall(lambda: 1 // 0)
    assert isinstance(later.error(), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        later.result()
