"""With shared start noise a prompt is one row until its samples differ."""

from collections.abc import Sequence

import pytest
import torch

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, Ddim, FlowPath, FlowSde, Path, Point, Policy, Prompt, Sampler, VpPath
from grpaint.core.rng import Key
from grpaint.core.runtime import Runtime
from grpaint.rollout import Closed, Independent, Plan, Prefix, Random, Rollout, Shared, Whole, roll
from grpaint.rollout.start import StartLatents, StartRows
from grpaint.rollout.window import Window

PROMPTS = [Prompt("one"), Prompt("two"), Prompt("three")]
WINDOWS = [Whole(), Prefix(2), Random(2, 1, 1), Random(3, 4, 4), Closed()]


class Repeated:
    """The noise of :class:`Shared`, with the whole group carried from the beginning."""

    shared = False

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], rows: StartRows, grid: Sequence[Point], key: Key
    ) -> StartLatents:
        every = torch.arange(len(prompts))
        begin = Shared().begin(policy, prompts, StartRows(every, every), grid, key)
        return StartLatents(*(part[rows.group] for part in begin))


def model(path: Path | None = None) -> GaussianPolicy:
    return GaussianModel(path=path or FlowPath()).load(Runtime())


def rolled(policy: Policy, **settings: object) -> Rollout:
    return roll(policy, PROMPTS, 4, Plan(steps=8, **settings), iteration=2, seed=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    ("path", "sampler"), [(FlowPath(3), FlowSde()), (FlowPath(), Cps()), (VpPath(), Ddim())], ids=["sde", "cps", "ddim"]
)
def test_forking_late_changes_no_number_beyond_rounding(window: Window, path: Path, sampler: Sampler) -> None:
    forked = rolled(model(path), sampler=sampler, window=window, start=Shared())
    carried = rolled(model(path), sampler=sampler, window=window, start=Repeated())
    torch.testing.assert_close(forked.x0, carried.x0)
    assert torch.equal(forked.group, carried.group)
    assert [t.step for t in forked.transitions] == [t.step for t in carried.transitions]
    for ours, theirs in zip(forked.transitions, carried.transitions, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        for name in ("x", "x_next", "mean", "logp"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "fork"), [(Whole(), 0), (Prefix(3), 0), (Random(2, 3, 3), 3), (Random(2, 6, 6), 6)], ids=str
)
def test_a_prompt_costs_one_evaluation_a_step_before_the_fork_and_its_group_after(window: Window, fork: int) -> None:
    policy = model()
    rolled(policy, sampler=FlowSde(), window=window, start=Shared())
    assert policy.meter.counts == {"training": 3 * fork + 12 * (8 - fork)}


def test_without_shared_noise_every_step_costs_every_row() -> None:
    policy = model()
    rolled(policy, sampler=FlowSde(), window=Random(2, 6, 6), start=Independent())
    assert policy.meter.counts == {"training": 12 * 8}


def test_a_closed_window_gives_a_group_one_image_and_costs_one_row() -> None:
    policy = model()
    rollout = rolled(policy, sampler=FlowSde(), window=Closed(), start=Shared())
    assert rollout.transitions == ()
    assert len(rollout.x0) == len(rollout.group) == len(rollout.cond) == len(rollout.references) == 12
    for number in range(3):
        images = rollout.x0[rollout.group == number]
        assert torch.equal(images, images[:1].expand_as(images))
    assert len(rollout.x0.flatten(1).unique(dim=0)) == 3
    assert policy.meter.counts == {"training": 3 * 8}


def test_members_agree_up_to_the_fork_and_differ_from_there_on() -> None:
    rollout = rolled(model(), sampler=FlowSde(), window=Random(2, 3, 3), start=Shared())
    first = rollout.transitions[0]
    for number in range(3):
        rows = rollout.group == number
        assert len(first.x[rows].flatten(1).unique(dim=0)) == 1
        assert len(first.x_next[rows].flatten(1).unique(dim=0)) == 4
        assert len(rollout.x0[rows].flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize(("guidance", "networks"), [(1.0, 1), (3.0, 2)])
def test_guidance_doubles_the_evaluations(guidance: float, networks: int) -> None:
    policy = Scenes(start="random", guidance=guidance).load(Runtime())
    given = [Prompt("a red circle"), Prompt("a blue cross")]
    plan = Plan(steps=4, sampler=Cps(), window=Random(1, 2, 2), start=Shared())
    roll(policy, given, 3, plan, iteration=0, seed=0)
    assert policy.meter.counts == {"training": networks * (2 * 2 + 6 * 2)}
