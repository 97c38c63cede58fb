"""Advantages against their closed forms, written out in numpy."""

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpaint.backends.gaussian import GaussianCondition
from grpaint.core import Ode, Prompt
from grpaint.learn import BatchNorm, GroupNorm, History, LeaveOneOut, PerReward, RewardTable
from grpaint.learn.advantage import Advantage
from grpaint.rollout import Rollout

EVEN = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
RAGGED = [0, 0, 1, 1, 1, 1, 1, 4, 4, 4, 4, 4]


def rollout(group: list[int], texts: list[str] | None = None) -> Rollout:
    """A finished rollout of which only the groups and prompts matter."""
    count = len(group)
    return Rollout(
        prompts=[Prompt(text) for text in texts or [f"prompt {i}" for i in range(max(group) + 1)]],
        group=torch.tensor(group),
        cond=GaussianCondition(torch.zeros(count, 2)),
        sampler=Ode(),
        transitions=(),
        x0=torch.zeros(count, 1, 2, 2),
        previews={},
        references=torch.zeros(count, dtype=torch.bool),
        iteration=0,
        seed=0,
    )


def scores(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def table(**columns: np.ndarray | list[float]) -> RewardTable:
    return RewardTable({name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()})


def normalised(reward: np.ndarray, group: list[int], std: str, eps: float) -> np.ndarray:
    values, numbers = reward.astype(np.float64), np.array(group)
    out = np.zeros_like(values)
    for number in set(group):
        rows = numbers == number
        divisor = {"group": values[rows].std() + eps, "batch": values.std() + eps, "none": 1.0}[std]
        out[rows] = (values[rows] - values[rows].mean()) / divisor
    return out


def close(ours: Tensor, expected: np.ndarray) -> None:
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("group", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("eps", [1e-4, 0.5])
def test_group_norm_is_grpo(group: list[int], std: str, eps: float) -> None:
    reward = scores(1)
    ours = GroupNorm(std, eps, clip=100)(table(r=reward), rollout(group))  # type: ignore[arg-type]
    close(ours, normalised(reward, group, std, eps))


def test_group_norm_sums_weighted_raw_rewards() -> None:
    a, b = scores(1), 10 * scores(2)
    both = RewardTable({"a": torch.tensor(a), "b": torch.tensor(b)}, {"a": 2.0, "b": -0.5})
    close(GroupNorm()(both, rollout(EVEN)), normalised(2 * a - 0.5 * b, EVEN, "group", 1e-4))


@pytest.mark.parametrize("group", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_leave_one_out_is_relative_to_the_others(group: list[int], std: str) -> None:
    reward, numbers = scores(1), np.array(group)
    expected = np.zeros(12)
    for row in range(12):
        own = numbers == numbers[row]
        others = own & (np.arange(12) != row)
        divisor = {"group": reward[own].std() + 1e-4, "batch": reward.std() + 1e-4, "none": 1.0}[std]
        expected[row] = (reward[row] - reward[others].mean()) / divisor
    close(LeaveOneOut(std)(table(r=reward), rollout(group)), expected)  # type: ignore[arg-type]


RELATIVE = [GroupNorm(), GroupNorm("batch"), GroupNorm("none"), LeaveOneOut(), PerReward(), PerReward("batch")]
EVERY = [*RELATIVE, BatchNorm(), History()]


@pytest.mark.parametrize("advantage", RELATIVE, ids=str)
@given(
    reward=st.lists(st.sampled_from([0.0, 0.25, 1.0, -1.0, 3.0]), min_size=12, max_size=12),
    cuts=st.sets(st.integers(1, 11), max_size=4),
)
def test_advantages_of_a_group_sum_to_zero(advantage: Advantage, reward: list[float], cuts: set[int]) -> None:
    group = [sum(row >= cut for cut in cuts) for row in range(12)]
    ours = advantage(table(r=reward), rollout(group)).double()
    for number in set(group):
        assert ours[torch.tensor(group) == number].sum().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, -0.1, 1e4])
@pytest.mark.parametrize("advantage", RELATIVE, ids=str)
def test_a_flat_group_gets_exactly_zero(advantage: Advantage, value: float) -> None:
    reward = scores(3)
    reward[4:8] = np.float32(value)
    ours = advantage(table(r=reward), rollout(EVEN))
    assert torch.equal(ours[4:8], torch.zeros(4))
    assert (ours[:4] != 0).all()
    assert (ours[8:] != 0).all()


@pytest.mark.parametrize("advantage", EVERY, ids=str)
def test_a_flat_batch_gets_exactly_zero(advantage: Advantage) -> None:
    assert torch.equal(advantage(table(r=[1 / 3] * 12), rollout(EVEN)), torch.zeros(12))


@pytest.mark.parametrize("advantage", RELATIVE, ids=str)
def test_a_member_of_a_group_of_one_has_no_advantage(advantage: Advantage) -> None:
    ours = advantage(table(r=scores(4, 5)), rollout([0, 0, 0, 1, 2]))
    assert torch.equal(ours[3:], torch.zeros(2))


@pytest.mark.parametrize("make", [GroupNorm, PerReward, BatchNorm, partial(History, 100)])
def test_advantages_are_clipped(make: Callable[..., Advantage]) -> None:
    reward = [0.0] * 99 + [1e3]
    group = [0] * 100
    assert make(clip=5.0)(table(r=reward), rollout(group)).max().item() == 5.0
    assert make(clip=100.0)(table(r=reward), rollout(group)).max().item() == pytest.approx(99**0.5, rel=1e-4)
    low = [0.0] * 99 + [-1e3]
    assert make(clip=5.0)(table(r=low), rollout(group)).min().item() == -5.0


@pytest.mark.parametrize("std", ["group", "batch"])
def test_per_reward_is_the_weighted_mean_of_normalised_rewards(std: str) -> None:
    a, b = scores(1), scores(2)
    both = RewardTable({"a": torch.tensor(a), "b": torch.tensor(b)}, {"a": 3.0})
    expected = 0.75 * normalised(a, EVEN, std, 0) + 0.25 * normalised(b, EVEN, std, 0)
    close(PerReward(std, eps=1e-9)(both, rollout(EVEN)), expected)  # type: ignore[arg-type]


def test_a_negative_weight_turns_a_reward_round() -> None:
    a, b = scores(1), scores(2)
    for weights in ({"a": -1.0, "b": 0.0}, {"a": 1.0, "b": -2.0}, {"a": 1.0, "b": -0.99}):
        both = RewardTable({"a": torch.tensor(a), "b": torch.tensor(b)}, weights)
        parts = [weights[name] * normalised(each, EVEN, "group", 0) for name, each in (("a", a), ("b", b))]
        close(PerReward(eps=1e-9)(both, rollout(EVEN)), sum(parts) / sum(map(abs, weights.values())))


@pytest.mark.parametrize("factor", [1000.0, 1e-3])
@pytest.mark.parametrize("std", ["group", "batch"])
def test_the_unit_of_a_reward_does_not_matter_to_per_reward(std: str, factor: float) -> None:
    a, b, advantage = scores(1), scores(2), PerReward(std)  # type: ignore[arg-type]
    before = advantage(table(a=a, b=b), rollout(EVEN))
    torch.testing.assert_close(advantage(table(a=factor * a, b=b), rollout(EVEN)), before, rtol=1e-5, atol=1e-6)
    scaled = GroupNorm()(table(a=factor * a, b=b), rollout(EVEN))
    assert (scaled - GroupNorm()(table(a=a, b=b), rollout(EVEN))).abs().max() > 0.1


def test_shares_add_up_to_the_advantage() -> None:
    both, advantage = table(a=scores(1), b=scores(2)), PerReward(clip=100)
    shares = advantage.shares(both, rollout(EVEN))
    assert set(shares) == {"a", "b"}
    torch.testing.assert_close(sum(shares.values()).float(), advantage(both, rollout(EVEN)))


def test_other_rewards_take_the_weight_of_one_that_does_not_apply() -> None:
    a, b, c = scores(1), scores(2), scores(3)
    where = torch.tensor([False] * 4 + [True] * 8)
    columns = {"a": torch.tensor(a), "b": torch.tensor(b), "c": torch.tensor(c)}
    masked = RewardTable(columns, {"a": 1.0, "b": 3.0, "c": 4.0}, {"c": where})
    ours = PerReward(eps=1e-9)(masked, rollout(EVEN))
    parts = [normalised(r, EVEN, "group", 0) for r in (a, b, c)]
    close(ours[:4], (parts[0] / 4 + parts[1] * 3 / 4)[:4])
    close(ours[4:], (parts[0] / 8 + parts[1] * 3 / 8 + parts[2] / 2)[4:])


def test_scores_of_rows_without_the_reward_are_ignored() -> None:
    a, b, where = scores(1), scores(2), torch.tensor([True] * 4 + [False] * 8)

    def at(column: np.ndarray, advantage: Advantage) -> Tensor:
        columns = {"a": torch.tensor(a), "b": torch.tensor(column)}
        return advantage(RewardTable(columns, applies={"b": where}), rollout(EVEN))

    other = b.copy()
    other[4:] = 1e3
    for advantage in RELATIVE:
        assert torch.equal(at(other, advantage), at(b, advantage))


@pytest.mark.parametrize("advantage", RELATIVE, ids=str)
def test_rows_to_which_no_reward_applies_have_no_advantage(advantage: Advantage) -> None:
    where = torch.tensor([True] * 4 + [False] * 8)
    only = RewardTable({"a": torch.tensor(scores(1))}, applies={"a": where})
    ours = advantage(only, rollout(EVEN))
    assert torch.equal(ours[4:], torch.zeros(8))
    assert (ours[:4] != 0).all()


def test_rewards_of_weight_zero_give_no_advantage() -> None:
    muted = RewardTable({"a": torch.tensor(scores(1))}, {"a": 0.0})
    for advantage in RELATIVE:
        assert torch.equal(advantage(muted, rollout(EVEN)), torch.zeros(12))


def test_batch_norm_ignores_groups_and_allows_groups_of_one() -> None:
    reward = scores(5)
    expected = (reward - reward.mean(dtype=np.float64)) / reward.std(dtype=np.float64)
    for group in (EVEN, RAGGED, list(range(12))):
        close(BatchNorm()(table(r=reward), rollout(group)), expected)
    assert not BatchNorm.needs_group
    assert not History.needs_group
    assert GroupNorm.needs_group
    assert PerReward.needs_group


def tracked(rounds: list[tuple[list[int], np.ndarray]], buffer: int, min_count: int, eps: float) -> list[np.ndarray]:
    """The published per-prompt tracker, over several iterations."""
    seen: dict[int, list[float]] = {}
    out = []
    for group, reward in rounds:
        values = reward.astype(np.float64)
        advantage = np.zeros_like(values)
        for number in set(group):
            rows = np.array(group) == number
            seen[number] = [*seen.get(number, []), *values[rows]][-buffer:]
            base = values if len(seen[number]) < min_count else np.array(seen[number])
            advantage[rows] = (values[rows] - base.mean()) / (base.std() + eps)
        out.append(advantage)
    return out


@pytest.mark.parametrize(("buffer", "min_count"), [(32, 16), (8, 5), (3, 1), (16, 16)])
def test_history_is_the_tracker_of_ddpo(buffer: int, min_count: int) -> None:
    rng = np.random.default_rng(0)
    rounds = [([*rng.integers(0, 4, size=12).tolist(), 3], rng.normal(size=13).astype(np.float32)) for _ in range(8)]
    history = History(buffer, min_count, clip=100)
    expected = tracked(rounds, buffer, min_count, 1e-6)
    for (group, reward), advantage in zip(rounds, expected, strict=True):
        ours = history(table(r=reward), rollout(group))
        np.testing.assert_allclose(ours.numpy(), advantage, rtol=1e-5, atol=1e-5)


def test_history_falls_back_on_the_batch_until_a_prompt_is_known() -> None:
    reward = scores(1)
    batch = BatchNorm(eps=1e-6)(table(r=reward), rollout(EVEN))
    assert torch.equal(History(32, 5)(table(r=reward), rollout(EVEN)), batch)
    close(History(32, 4)(table(r=reward), rollout(EVEN)), normalised(reward, EVEN, "group", 1e-6))


def test_history_knows_a_prompt_by_its_text() -> None:
    reward = scores(1)
    split = History(32, 12)(table(r=reward), rollout(EVEN, ["same", "same", "same"]))
    close(split, normalised(reward, [0] * 12, "group", 1e-6))


def test_history_survives_json() -> None:
    history = History(buffer=8, min_count=3)
    for seed in range(3):
        history(table(r=scores(seed)), rollout(EVEN))
    state = json.loads(json.dumps(history.state_dict()))
    assert {text: len(seen) for text, seen in state.items()} == {f"prompt {i}": 8 for i in range(3)}
    other = History(buffer=8, min_count=3)
    other.load_state_dict(state)
    assert other.state_dict() == history.state_dict()
    for seed in (7, 8):
        ours, theirs = (each(table(r=scores(seed)), rollout(RAGGED)) for each in (other, history))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("buffer", "min_count"), [(8, 9), (8, 0), (0, 0)])
def test_a_history_that_could_never_fill_is_refused(buffer: int, min_count: int) -> None:
    with pytest.raises(ValueError, match="min_count must lie in"):
        History(buffer, min_count)


@pytest.mark.parametrize("make", [GroupNorm, PerReward, BatchNorm, History])
@pytest.mark.parametrize("settings", [{"eps": -1e-6}, {"clip": 0.0}, {"clip": -1.0}], ids=str)
def test_an_impossible_clip_or_eps_is_refused(make: Callable[..., Advantage], settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must"):
        make(**settings)


def test_a_total_counts_a_reward_in_the_rows_where_it_applies() -> None:
    where = torch.tensor([True, False])
    both = RewardTable({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}, {"b": 0.5}, {"b": where})
    assert both.total().tolist() == [6.0, 2.0]
    assert (both.weight("a"), both.weight("b")) == (1.0, 0.5)
