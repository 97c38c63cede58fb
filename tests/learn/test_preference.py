"""Objectives that compare the images of a group, against their formulas written out row by row."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import FlowPath, Path, Policy, Prompt, VpPath, noise
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime
from grpaint.learn import BestWorst, Dgpo, Dpo, GroupNorm, RewardTable
from grpaint.learn.forward import stratify
from grpaint.learn.preference import GroupObjective
from grpaint.parallel.world import World
from grpaint.recipe.config import open_recipe
from grpaint.rollout import Closed, Plan, Rollout, roll
from grpaint.run.shares import check_shares

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a green cross")]
ADVANTAGE = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.0, 0.0, 0.0, 0.0, -2.0, 0.4, 0.9, -0.6])
PLAN = Plan(5, window=Closed())
PAIRS = ((2, 3), (10, 8))  # the best and the worst row of each group with differences
EVERY = [Dpo(beta=3.0), Dgpo(beta=3.0), Dgpo(beta=3.0, draws=3, kl_reference=0.0)]


def move(policy: Policy, size: float, key: str) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise((key,), [number], parameter.shape)[0], alpha=size)


def moved(path: Path, weights: str = "current") -> tuple[GaussianPolicy, Rollout]:
    """A policy that is no longer its reference; with weights "behaviour" nor what sampled either."""
    policy = GaussianModel(path=path).load(Runtime())
    move(policy, 0.1, "trained")
    policy.blend("behaviour", 0.0)
    rollout = roll(policy, PROMPTS, 4, replace(PLAN, weights=weights), iteration=3, seed=5)  # type: ignore[arg-type]
    if weights == "behaviour":
        move(policy, 0.1, "moved")
    return policy, rollout


def errors(policy: GaussianPolicy, rollout: Rollout, draw: int, draws: int, weights: Any) -> Tensor:
    """The velocity's mean squared error of each row, at its group's noise and the time of the group's first row."""
    times, out = policy.path.times(stratify((5, 3, "forward"), 12, draws)[draw]), []
    for row in range(12):
        here = policy.path.at(times[row // 4 * 4].item())
        x0, eps = rollout.x0[row], noise((5, 3, "forward", draw), [row // 4], rollout.x0.shape[1:])[0]
        cond = rollout.cond.rows(torch.tensor([row]))
        with torch.no_grad():
            belief = policy.predict((here.alpha * x0 + here.sigma * eps)[None], here, cond, weights)
        out.append((((belief.eps - belief.x0)[0] - (eps - x0)) ** 2).mean())
    return torch.stack(out).double()


def total(objective: GroupObjective, policy: Policy, rollout: Rollout, advantage: Tensor = ADVANTAGE) -> float:
    return sum(term.loss.item() for term in objective(policy, rollout, advantage))


def gradient(objective: GroupObjective, policy: Policy, rollout: Rollout) -> Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    for term in objective(policy, rollout, ADVANTAGE):
        term.loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("path", [FlowPath(), VpPath()], ids=["flow", "vp"])
@pytest.mark.parametrize("draws", [1, 3])
def test_dpo_is_its_published_loss_on_the_best_and_worst_of_each_group(path: Path, draws: int) -> None:
    policy, rollout = moved(path)
    expected = 0.0
    for draw in range(draws):
        now, was = (errors(policy, rollout, draw, draws, weights) for weights in ("current", "reference"))
        for best, worst in PAIRS:
            inside = -3.0 * ((now[best] - was[best]) - (now[worst] - was[worst])).item()
            expected += math.log1p(math.exp(-inside)) / 3 / draws
    assert total(Dpo(beta=3.0, draws=draws), policy, rollout) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip", [1e-2, 10.0])
@pytest.mark.parametrize("path", [FlowPath(), VpPath()], ids=["flow", "vp"])
def test_dgpo_is_its_published_loss(path: Path, clip: float) -> None:
    policy, rollout = moved(path, "behaviour")
    now, old, was = (errors(policy, rollout, 0, 1, weights) for weights in ("current", "behaviour", "reference"))
    expected, row_losses = 0.0, []
    for group in range(3):
        rows = range(4 * group, 4 * group + 4)
        s = 3.0 / 4 * sum(ADVANTAGE[row].item() * (now[row] - was[row]).item() for row in rows)
        row_losses += [ADVANTAGE[row].item() * now[row].item() / (1 + math.exp(-s)) for row in rows]
    expected = sum(row_losses) / 12
    objective = Dgpo(beta=3.0, clip=clip, kl_reference=0.0)
    (term,) = objective(policy, rollout, ADVANTAGE)
    assert term.loss.item() == pytest.approx(expected, rel=1e-5)
    ratio = (old - now).exp()
    stopped = ((ADVANTAGE > 0) & (ratio > 1 + clip)) | ((ADVANTAGE < 0) & (ratio < 1 - clip))
    assert torch.equal(term.measures["clip_fraction"].bool(), stopped[ADVANTAGE != 0])
    assert stopped.any() == (clip < 1)


def test_a_row_that_has_gone_too_far_gives_dgpo_no_gradient() -> None:
    policy, rollout = moved(FlowPath(), "behaviour")
    (term,) = Dgpo(beta=3.0, kl_reference=0.0)(policy, rollout, ADVANTAGE)
    (kept,) = Dgpo(beta=3.0, kl_reference=0.0, clip=100.0)(policy, rollout, ADVANTAGE)
    parameters = list(policy.parameters())
    some, every = (torch.autograd.grad(t.loss, parameters)[0] for t in (term, kept))
    assert 0 < term.measures["clip_fraction"].sum() < 8
    assert (some - every).norm() > 0.1 * every.norm()


def test_at_the_reference_each_is_a_plain_weighted_loss() -> None:
    """Dpo's loss is log 2 and its gradient beta / 4 of the errors' difference; Dgpo's is half of A l."""
    policy = GaussianModel(path=FlowPath()).load(Runtime())
    rollout = roll(policy, PROMPTS, 4, PLAN, iteration=3, seed=5)
    assert total(Dpo(), policy, rollout) == pytest.approx(2 / 3 * math.log(2))
    sizes = {beta: gradient(Dpo(beta=beta), policy, rollout) for beta in (1.0, 8.0)}
    torch.testing.assert_close(sizes[8.0], 8 * sizes[1.0])
    expected = (ADVANTAGE * errors(policy, rollout, 0, 1, "current").float()).sum().item() / 24
    assert total(Dgpo(), policy, rollout) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", EVERY, ids=str)
@pytest.mark.parametrize("minibatch", [1, 3, 5, 64])
def test_minibatches_have_whole_groups_and_change_nothing(objective: GroupObjective, minibatch: int) -> None:
    policy, rollout = moved(FlowPath())
    part = replace(objective, minibatch=minibatch)
    expected = gradient(objective, policy, rollout)
    assert expected.norm() > 0
    assert (gradient(part, policy, rollout) - expected).norm() <= 1e-6 * expected.norm()
    assert total(part, policy, rollout) == pytest.approx(total(objective, policy, rollout), rel=1e-5)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_a_share_of_the_groups_has_its_share_of_the_gradient(objective: GroupObjective) -> None:
    policy, rollout = moved(FlowPath())
    expected, parts = gradient(objective, policy, rollout), torch.zeros(())
    for index in (torch.arange(4), torch.arange(4, 12)):
        share = replace(rollout.rows(index), total=12)
        for parameter in policy.parameters():
            parameter.grad = None
        for term in objective(policy, share, ADVANTAGE[index]):
            term.loss.backward()
        parts = parts + torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert (parts - expected).norm() <= 1e-6 * expected.norm()


def test_rows_that_teach_nothing_cost_nothing() -> None:
    policy, rollout = moved(FlowPath())
    for objective, rows in ((Dpo(), 4), (Dgpo(), 8)):
        policy.meter.counts.clear()
        list(objective(policy, rollout, ADVANTAGE))
        assert policy.meter.counts["training"] == rows * objective.evaluations("current") == rows * 4
        assert list(objective(policy, rollout, torch.zeros(12))) == []
        assert list(objective(policy, rollout.rows(torch.arange(0)), torch.zeros(0))) == []


def test_settings_that_cut_groups_are_refused() -> None:
    for kind in ("dpo", "dgpo"):
        chosen = f'objective={{kind="{kind}"}}'
        with pytest.raises(ConfigError, match=r"train\.updates = 2: each update has some images of a group"):
            open_recipe("lean-awm", "train", [chosen, "train.updates=2"])
        recipe, _ = open_recipe("lean-awm", "train", [chosen])
        world = World()
        world.size = 13
        with pytest.raises(ConfigError, match=r"train\.prompts = 12.*at most 12"):
            check_shares(recipe, world)
    with pytest.raises(ValueError, match="beta must be positive"):
        Dpo(beta=0.0)


@pytest.mark.parametrize("objective", [Dpo(beta=20.0), Dgpo(beta=20.0)], ids=str)
@pytest.mark.parametrize("path", [FlowPath(), VpPath()], ids=["flow", "vp"])
def test_preferences_raise_their_reward(path: Path, objective: GroupObjective) -> None:
    policy = GaussianModel(path=path, spread=0.3).load(Runtime())
    optimizer, advantage = torch.optim.Adam(policy.parameters(), lr=0.03), BestWorst(2, GroupNorm())

    def distance() -> float:
        with torch.no_grad():
            return ((policy.net(policy.encode(PROMPTS).embedding) - 0.4) ** 2).mean().item()

    before = distance()
    for iteration in range(30):
        rollout = roll(policy, PROMPTS, 12, PLAN, iteration=iteration, seed=0)
        table = RewardTable({"grey": -((rollout.x0 - 0.4) ** 2).flatten(1).mean(1)})
        optimizer.zero_grad()
        for term in objective(policy, rollout, advantage(table, rollout)):
            term.loss.backward()
        optimizer.step()
    assert distance() < 0.5 * before
