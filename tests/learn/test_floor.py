"""A reward that may not fall below the base, and each reward's share of the advantage."""

import pytest
import torch

from grpaint.backends.gaussian import GaussianModel
from grpaint.core import FlowPath, FlowSde, Prompt
from grpaint.core.runtime import Runtime
from grpaint.learn import BestWorst, GroupNorm, PerReward, PolicyGradient, RewardTable
from grpaint.learn.advantage import advantage_shares
from grpaint.learn.floor import Floor
from grpaint.rollout import Plan, Rollout, roll

PROMPTS = [Prompt(text) for text in ("a red circle", "a blue cross", "a green square", "a white triangle")]


def test_the_multiplier_rises_below_the_base_and_falls_to_zero_above() -> None:
    floor = Floor(rate=0.5, keep=0.0, most=1.0)
    spread = torch.tensor([-2.0, 2.0])
    floor.observe(3 + spread)
    assert (floor.base, floor.multiplier) == (3.0, 0.0)
    floor.observe(1 + spread)  # one spread below
    assert floor.multiplier == pytest.approx(0.5)
    floor.observe(-9 + spread)
    assert floor.multiplier == 1.0
    floor.observe(torch.empty(0))
    assert floor.multiplier == 1.0
    floor.observe(4 + spread)
    assert floor.multiplier == pytest.approx(0.75)
    for _ in range(9):
        floor.observe(4 + spread)
    assert floor.multiplier == 0.0


def test_another_unit_changes_nothing() -> None:
    one, other = Floor(), Floor()
    draw = torch.Generator().manual_seed(0)
    for number in range(6):
        scores = torch.randn(8, generator=draw) - 0.3 * number
        one.observe(scores)
        other.observe(1000 * scores)
    assert one.multiplier > 0
    assert other.multiplier == pytest.approx(one.multiplier, rel=1e-5)


def test_a_floor_restores_its_state() -> None:
    one, other = Floor(), Floor()
    for number in range(3):
        one.observe(torch.tensor([0.0, 1.0]) - number)
    other.load_state_dict(one.state_dict())
    for floor in (one, other):
        floor.observe(torch.tensor([-4.0, -5.0]))
    assert one == other
    assert one.multiplier > 0


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"keep": 1.0}, {"most": 0.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Floor(**wrong)


def brightness_after(floor: Floor | None, updates: int = 60) -> tuple[float, float]:
    """Mean brightness of the base and of what a reward for brightness makes of it, while darkness may be held."""
    policy = GaussianModel(path=FlowPath(3), spread=0.3).load(Runtime())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    means = []
    for iteration in range(updates):
        rollout = roll(policy, PROMPTS, 12, Plan(8, FlowSde(0.7)), iteration=iteration, seed=0)
        bright = policy.decode(rollout.x0).mean((1, 2, 3))
        means.append(bright.mean().item())
        weights = {"bright": 1.0, "dark": floor.multiplier if floor else 0.0}
        gains = PerReward()(RewardTable({"bright": bright, "dark": -bright}, weights), rollout)
        optimizer.zero_grad()
        for term in PolicyGradient()(policy, rollout, gains):
            term.loss.backward()
        optimizer.step()
        if floor:
            floor.observe(-bright)
    return means[0], sum(means[-10:]) / 10


def test_a_floor_holds_what_another_reward_pulls_down() -> None:
    base, free = brightness_after(None)
    _, held = brightness_after(Floor())
    assert free - base > 0.1
    assert held - base < 0.35 * (free - base)


def made(columns: dict[str, list[float]], weights: dict[str, float]) -> tuple[RewardTable, Rollout]:
    group, none = torch.tensor([0, 0, 1, 1]), torch.zeros(4)
    table = RewardTable({name: torch.tensor(column) for name, column in columns.items()}, weights)
    return table, Rollout(PROMPTS[:2], group, none, None, (), none, {}, none.bool(), 0, 0)


def test_shares_sum_to_one_and_follow_the_weights() -> None:
    columns = {"a": [0.0, 1.0, 3.0, 2.0], "b": [1000.0, 0.0, 500.0, 600.0]}
    shares = advantage_shares(PerReward(), *made(columns, {"a": 3.0, "b": 1.0}))
    assert shares == pytest.approx({"a": 0.75, "b": 0.25}, abs=1e-4)
    # of a weighted sum: the mean distances to the group's mean are 0.5 x 3 and (500 + 50) / 2
    assert advantage_shares(GroupNorm(), *made(columns, {"a": 3.0, "b": 1.0})) == pytest.approx(
        {"a": 1.5 / 276.5, "b": 275 / 276.5}
    )
    assert advantage_shares(BestWorst(2), *made(columns, {"a": 3.0, "b": 1.0})) == pytest.approx(shares)
    assert advantage_shares(PerReward(), *made({"a": [1.0] * 4, "b": [2.0] * 4}, {})) == {}
