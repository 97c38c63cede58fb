"""Selection after scoring: static Optimal Variance Filtering, and the best and worst of a group."""

import itertools

import pytest
import torch

from grpaint.backends.gaussian import GaussianModel
from grpaint.core import FlowSde, Prompt
from grpaint.core.runtime import Runtime
from grpaint.learn import BestWorst, GroupNorm, OptimalVariance, PerReward, PolicyGradient, RewardTable
from grpaint.rollout import Plan, roll

POLICY = GaussianModel().load(Runtime())
ROLLOUT = roll(POLICY, [Prompt("one"), Prompt("two")], 7, Plan(4, FlowSde()), iteration=0, seed=0)


def scores(seed: int) -> torch.Tensor:
    return torch.randn(14, generator=torch.Generator().manual_seed(seed))


def halves(values: torch.Tensor) -> list[torch.Tensor]:
    return [values[ROLLOUT.group == number] for number in (0, 1)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [2, 4, 6])
def test_filtering_keeps_the_subset_of_largest_variance_and_its_own_statistics(seed: int, keep: int) -> None:
    reward = scores(seed)
    advantage = OptimalVariance(keep, GroupNorm())(RewardTable({"r": reward}), ROLLOUT)
    for values, gained in zip(halves(reward), halves(advantage), strict=True):
        best = max(itertools.combinations(range(7), keep), key=lambda rows: values[list(rows)].var(correction=0).item())
        chosen = values[list(best)]
        expected = (chosen - chosen.mean()) / (chosen.std(correction=0) + 1e-4) * 7 / keep
        torch.testing.assert_close(gained[list(best)], expected)
        assert (gained != 0).sum() == keep


def test_a_group_no_larger_than_the_selection_stays_whole() -> None:
    table = RewardTable({"r": scores(0)})
    for wrap in (OptimalVariance, BestWorst):
        torch.testing.assert_close(wrap(8, GroupNorm())(table, ROLLOUT), GroupNorm()(table, ROLLOUT))


def test_the_best_and_the_worst_are_judged_by_the_whole_groups_statistics() -> None:
    table = RewardTable({"r": scores(3), "s": scores(4)})
    plain = PerReward()(table, ROLLOUT)
    chosen = BestWorst(4)(table, ROLLOUT)
    for whole, part in zip(halves(plain), halves(chosen), strict=True):
        order = whole.argsort()
        assert sorted(part.nonzero()[:, 0].tolist()) == sorted([*order[:2].tolist(), *order[-2:].tolist()])
    rows = chosen.nonzero()[:, 0]
    torch.testing.assert_close(chosen[rows], plain[rows] * 14 / 8)


def test_left_out_rows_cost_no_model_call_and_the_mean_is_over_the_rest() -> None:
    advantage = OptimalVariance(4, GroupNorm())(RewardTable({"r": scores(1)}), ROLLOUT)
    before = POLICY.meter.counts["training"]
    terms = list(PolicyGradient()(POLICY, ROLLOUT, advantage))
    assert POLICY.meter.counts["training"] - before == 8 * 3 * 3  # kept rows, steps, forward and backward
    small = ROLLOUT.rows(advantage.nonzero()[:, 0])
    same = PolicyGradient()(POLICY, small, advantage[advantage != 0] * 8 / 14)
    torch.testing.assert_close(sum(t.loss for t in terms), sum(t.loss for t in same))


@pytest.mark.parametrize(("wrap", "keep"), [(OptimalVariance, 1), (BestWorst, 0), (BestWorst, 3)])
def test_a_selection_of_an_impossible_size_is_refused(wrap: type, keep: int) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        wrap(keep)
