"""Pieces of a user's own: what fits a protocol trains, and what does not is one line."""

from pathlib import Path

import pytest

import tiny_runs
from tiny_runs import TINY, command, status

pytestmark = pytest.mark.usefixtures("small_network")

PIECES = """
from dataclasses import dataclass, field

import torch

from grpaint.learn.objective import PolicyGradient, Term
from grpaint.learn.surrogate import PpoClip, Surrogate, log_ratio


def centred(table, rollout):
    total = table.total()
    return total - total.mean()

def one(table):
    return table.total()

def short(table, rollout):
    return centred(table, rollout)[1:]

def narrow(table, rollout):
    return centred(table, rollout)[:, None]

def whole(table, rollout):
    return (table.total() > 0.5).long()

def nothing(table, rollout):
    return None

def infinite(table, rollout):
    advantage = centred(table, rollout)
    advantage[2] = float("inf")
    return advantage

def raises(table, rollout):
    raise KeyError("a bug of mine")

def ratio(gaussian, transition, advantage):
    return -advantage * log_ratio(gaussian, transition).exp()

def averaged(gaussian, transition, advantage):
    return ratio(gaussian, transition, advantage).mean()

def constant(gaussian, transition, advantage):
    return -advantage

def lonely(now, reference, transition):
    return now.gaussian.mean.mean()

def no_terms(policy, rollout, advantage):
    return None

def no_term(policy, rollout, advantage):
    yield torch.ones(3, requires_grad=True)

def nan_sampler(here, there):
    return float("nan"), 0.5

def three(here, there):
    return there.sigma, 0.5, 1

class Beyond:
    def steps(self, total, iteration, seed):
        return [total + 3]

    def reach(self, total):
        return range(2)

    def check(self, total):
        pass

class Halfway:
    def steps(self, total):
        return [0]

    def reach(self, total):
        return range(2)

    def check(self, total):
        pass

@dataclass
class Running:
    needs_group = True

    def __call__(self, table, rollout):
        return centred(table, rollout)

    def state_dict(self):
        return {"mean": torch.zeros(1)}

    def load_state_dict(self, state):
        pass

@dataclass
class Unwritten:
    power: set = field(default_factory=set)

    def __call__(self, table, rollout):
        return centred(table, rollout)

@dataclass
class Unread:
    power: "Nowhere" = 1

    def __call__(self, table, rollout):
        return centred(table, rollout)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("my.py").write_text(PIECES)
        yield


def test_own_functions_train_and_resume():
    sets = [*TINY, tiny_runs.REWARD, "advantage.kind=my.py:centred", "objective.surrogate.kind=my.py:ratio"]
    for name in ("whole", "parted"):
        words = [] if name == "whole" else ["train.iterations=2"]
        assert command("train", "flow-grpo-fast", "--name", name, sets=[*sets, *words]).code == 0
    assert command("train", "--name", "parted", "--resume", sets=["train.iterations=4"]).code == 0
    tiny_runs.same(Path("runs/whole"), Path("runs/parted"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("advantage.kind=my.py:one", "__call__(table, rollout): too many positional arguments"),
        ("objective.surrogate.kind=my.py:one", "__call__(gaussian, transition, advantage): too many"),
        ("plan.window={kind='my.py:one'}", "it must have steps(total, iteration, seed)"),
        ("plan.window={kind='my.py:Halfway'}", "steps(total, iteration, seed): too many"),
        ("plan.sampler.kind=my.py:nan_sampler", "plan.sampler gives gain nan and std 0.5 at step 0"),
        ("plan.sampler.kind=my.py:three", "plan.sampler: a sampler returns (gain, std), and not ("),
        ("advantage.kind=my.py:Unwritten", "a default that run.toml could not repeat"),
        ("advantage.kind=my.py:Unread", "the annotations of Unread cannot be read: name 'Nowhere' is not defined"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(setting, words):
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, setting])
    assert end.code == 2
    assert words in end.err
    assert setting.replace("={", ".").partition(".kind")[0] in end.err
    assert end.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("advantage.kind=my.py:short", "advantage short: it returned torch.float32 of shape [11] for 12 rows"),
        (
            "advantage={kind='ovf',keep=2,of={kind='my.py:short'}}",
            "advantage short: it returned torch.float32 of shape [5]",
        ),
        ("advantage.kind=my.py:narrow", "of shape [12, 1] for 12 rows and 3 steps"),
        ("advantage.kind=my.py:whole", "torch.int64 of shape [12]"),
        ("advantage.kind=my.py:nothing", "advantage nothing: it returned NoneType"),
        (
            "advantage.kind=my.py:infinite",
            "advantage infinite: it returned NaN or infinity for 1 of 12 rows (prompts: ",
        ),
        ("advantage.kind=my.py:raises", "in raises: KeyError: 'a bug of mine'"),
        (
            "objective.surrogate.kind=my.py:averaged",
            "objective.surrogate: it returned shape []; it must return one number per row",
        ),
        ("objective.surrogate.kind=my.py:constant", "whose loss is one number with a gradient"),
        (
            "objective.penalty.kind=my.py:lonely",
            "objective.penalty: it returned Tensor; it must return a loss and a distance",
        ),
        ("objective.kind=my.py:no_terms", "objective: it returned NoneType; it must return an iterator of Terms"),
        ("objective.kind=my.py:no_term", "objective: it must yield Terms"),
        (
            "plan.window={kind='my.py:Beyond'}",
            "it chose steps [7] in iteration 0; they must be steps of its reach, [0, 1]",
        ),
        ("advantage.kind=my.py:Running", "a state_dict cannot be kept as JSON (Object of type Tensor"),
    ],
)
def test_later_failures_are_one_line_too(setting, words):
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, tiny_runs.REWARD, setting])
    assert end.code == (2 if setting.startswith("plan.window") else 1)
    assert words in end.err
    assert end.err.count("\n") == 1
    assert status(Path("runs/it"))["status"] == "failed"


def test_images_that_are_not_finite_are_not_scored(monkeypatch):
    from grpaint.backends.scenes import ScenePolicy

    decode = ScenePolicy.decode
    monkeypatch.setattr(
        ScenePolicy, "decode", lambda policy, x: decode(policy, x).index_fill(0, x.new_ones(1).long(), float("nan"))
    )
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, "rewards.checker.self_test=false"])
    assert end.code == 1
    assert "1 of 6 images of an evaluation contain NaN or infinity" in end.err


def test_settings_without_a_kind_are_those_of_the_kind_in_force():
    Path("bare.toml").write_text(
        '[model]\nkind = "scenes"\n[data]\nkind = "scenes"\n[plan.sampler]\nkind = "flow-sde"\n'
        '[rewards.checker]\nkind = "scenes-checker"\n[train]\niterations = 4\nlearning_rate = 1e-3\n'
    )
    sets = ["objective.minibatch=5", "plan.window.skip_last=2", "objective.surrogate.low=0.5"]
    end = command("show", "bare.toml", sets=sets)
    assert end.err == ""
    output = end.out
    for line in ('kind = "policy-gradient"', "minibatch = 5", 'kind = "whole"', "skip_last = 2", 'kind = "ppo-clip"'):
        assert line in output
    sets = [*(item for item in TINY if "window" not in item), "train.iterations=1"]
    assert command("train", "bare.toml", "--name", "it", sets=sets).code == 0
    more = ["train.iterations=2", "objective.minibatch=5"]
    assert command("train", "bare.toml", "--name", "it", "--resume", sets=more).err == ""
    assert status(Path("runs/it"))["iterations"] == 2
