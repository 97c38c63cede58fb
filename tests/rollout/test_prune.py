"""The subset of largest variance is exact, and a funnel prunes without touching who survives."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import Cps, FlowPath, FlowSde, Prompt
from grpaint.core.runtime import Runtime
from grpaint.rollout import (
    Closed,
    Funnel,
    Plan,
    Random,
    Rollout,
    Shared,
    Sliding,
    Tail,
    Whole,
    act,
    optimal_variance,
    roll,
)
from grpaint.rollout.prune import ranks

PROMPTS = [Prompt("one"), Prompt("two"), Prompt("three")]
FUNNEL = Funnel(at=(2, 4), keep=(4, 2))


def brute_force(scores: np.ndarray, keep: int) -> float:
    subsets = np.array(list(itertools.combinations(range(len(scores)), keep)))
    return float(scores[subsets].var(axis=1).max())


DRAW = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(size=n),
    "tied": lambda rng, n: rng.integers(0, 3, size=n).astype(float),
    "exponential": lambda rng, n: rng.exponential(size=n),
}


@pytest.mark.parametrize("kind", DRAW)
def test_the_selected_scores_have_the_largest_variance_of_all_subsets(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(250):
        size = int(rng.integers(2, 10))
        keep = int(rng.integers(2, size + 1))
        scores = DRAW[kind](rng, size)
        chosen = optimal_variance(torch.tensor(scores), keep).tolist()
        assert len(chosen) == keep
        assert chosen == sorted(set(chosen))
        assert scores[chosen].var() == pytest.approx(brute_force(scores, keep), rel=1e-9, abs=1e-12)


@given(scores=st.lists(st.integers(-5, 5), min_size=3, max_size=8), offset=st.sampled_from([0.0, 1e4, -1e8]))
def test_a_large_common_offset_does_not_spoil_the_choice(scores: list[int], offset: float) -> None:
    values = np.array(scores, dtype=float)
    chosen = optimal_variance(torch.tensor(values + offset, dtype=torch.float64), 2).tolist()
    assert values[chosen].var() == pytest.approx(brute_force(values, 2), rel=1e-9, abs=1e-12)


def test_optimal_variance_is_not_half_best_and_half_worst() -> None:
    scores = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 10.0])
    assert optimal_variance(scores, 4).tolist() == [0, 1, 2, 5]


def test_all_rows_stay_if_the_selection_is_as_large() -> None:
    assert optimal_variance(torch.tensor([3.0, 1.0, 2.0]), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_a_subset_without_variance_or_larger_than_the_group_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"2..4, got {keep}")):
        optimal_variance(torch.arange(4.0), keep)


@pytest.mark.parametrize(
    ("at", "keep", "match"),
    [
        ((2, 4), (4,), "as long as keep"),
        ((4, 2), (4, 2), "ascend"),
        ((2, 2), (4, 2), "ascend"),
        ((2, 4), (2, 4), "descend"),
        ((2, 4), (4, 1), "2 or more"),
    ],
)
def test_a_funnel_that_widens_or_goes_back_is_refused(at: tuple[int, ...], keep: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Funnel(at, keep)


@pytest.mark.parametrize(
    ("funnel", "match"),
    [(Funnel((0,), (4,)), "1..5"), (Funnel((6,), (4,)), "1..5"), (Funnel((2,), (9,)), "group size 8")],
)
def test_a_plan_refuses_a_funnel_that_does_not_fit(funnel: Funnel, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Plan(steps=6, sampler=Cps(), prune=funnel).check(FlowPath(), 8)


def test_survivors_are_chosen_group_by_group() -> None:
    group = torch.tensor([0, 0, 0, 0, 7, 7, 7])
    scores = torch.tensor([5.0, 0.0, 5.1, 9.0, -1.0, 0.0, 3.0])
    assert Funnel((3,), (2,)).survivors(2, group, scores, 0).tolist() == [1, 3, 4, 6]


def brightness(images: Tensor, prompts: object, references: object = None) -> Tensor:
    return images.flatten(1).mean(1)


def model() -> GaussianPolicy:
    return GaussianModel(spread=1.0).load(Runtime())


def rolled(policy: GaussianPolicy, prune: Funnel | None, **settings: object) -> Rollout:
    plan = Plan(steps=6, sampler=FlowSde(), prune=prune, **settings)  # type: ignore[arg-type]
    plan.check(policy.path, 8)
    return roll(policy, PROMPTS, 8, plan, iteration=3, seed=5, score=brightness)


def numbers(policy: GaussianPolicy, rollout: Rollout) -> list[int]:
    """The sample numbers that rows had before pruning, recognised by their start noise."""
    noise = policy.noise((5, 3, "start"), range(24))
    return [int((noise == x).flatten(1).all(1).nonzero()) for x in rollout.transitions[0].x]


def seen_at(policy: GaussianPolicy, whole: Rollout, k: int) -> Tensor:
    """What the unpruned rollout would have scored after ``k`` steps."""
    action = whole.transitions[k]
    with torch.no_grad():
        _, prediction = act(policy, whole.sampler, action.x, action.here, action.there, whole.cond)
    return brightness(policy.decode(prediction.x0), None)


def test_a_funnel_keeps_what_the_previews_of_the_whole_rollout_say() -> None:
    policy = model()
    whole, pruned = rolled(policy, None), rolled(policy, FUNNEL)
    expected = []
    for group in range(3):
        live = torch.arange(8) + 8 * group
        for k, keep in ((2, 4), (4, 2)):
            live = live[optimal_variance(seen_at(policy, whole, k)[live], keep)]
        expected += live.tolist()
    assert numbers(policy, pruned) == expected
    assert pruned.group.tolist() == [0, 0, 1, 1, 2, 2]
    for k in (2, 4):
        torch.testing.assert_close(pruned.previews[k], seen_at(policy, whole, k)[expected])
    assert set(pruned.previews) == {2, 4}


def test_a_survivor_samples_as_if_nothing_had_been_pruned() -> None:
    policy = model()
    whole, pruned = rolled(policy, None), rolled(policy, FUNNEL)
    counts = numbers(policy, pruned)
    torch.testing.assert_close(pruned.x0, whole.x0[counts])
    assert [t.step for t in pruned.transitions] == [t.step for t in whole.transitions]
    for ours, theirs in zip(pruned.transitions, whole.transitions, strict=True):
        assert ours.rows.tolist() == list(range(6))
        for name in ("x", "x_next", "mean", "logp"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name)[counts])


def test_pruned_rows_leave_nothing_behind() -> None:
    policy = model()
    pruned = rolled(policy, FUNNEL)
    assert len(pruned.x0) == len(pruned.cond) == len(pruned.references) == 6
    for transition in pruned.transitions:
        assert len(transition.x) == len(transition.x_next) == len(transition.logp) == len(transition.mean) == 6
    last = pruned.transitions[-1]
    with torch.no_grad():
        end, _ = act(policy, pruned.sampler, last.x, last.here, last.there, pruned.cond)
    torch.testing.assert_close(end.mean, last.mean)


def test_a_pruning_point_costs_only_the_prediction_of_pruned_rows() -> None:
    policy = model()
    rolled(policy, FUNNEL)
    assert policy.meter.counts["training"] == 3 * (8 * 3 + 4 * 2 + 2 * 1)


def test_the_score_sees_the_clean_prediction_of_every_live_row_and_its_prompt() -> None:
    calls: list[tuple[int, list[str]]] = []

    def score(images: Tensor, prompts: list[Prompt], references: object) -> Tensor:
        assert images.shape[1:] == (3, 4, 4)
        calls.append((len(images), [prompt.text for prompt in prompts]))
        return brightness(images, prompts)

    plan = Plan(steps=6, sampler=Cps(), prune=FUNNEL)
    roll(model(), PROMPTS, 8, plan, iteration=0, seed=0, score=score)
    texts = [prompt.text for prompt in PROMPTS]
    assert calls == [(3 * n, [text for text in texts for _ in range(n)]) for n in (8, 4)]


def test_a_funnel_that_prunes_no_row_changes_no_bit() -> None:
    policy = model()
    plain = rolled(policy, None)
    for funnel in (Funnel((), ()), Funnel((2,), (8,))):
        same = rolled(policy, funnel)
        assert torch.equal(same.x0, plain.x0)
        assert torch.equal(same.group, plain.group)
        for ours, theirs in zip(same.transitions, plain.transitions, strict=True):
            assert all(
                torch.equal(getattr(ours, n), getattr(theirs, n)) for n in ("rows", "x", "x_next", "mean", "logp")
            )


def test_a_window_after_or_before_the_checkpoint_is_recorded_for_survivors() -> None:
    for low in (0, 3):
        pruned = rolled(model(), Funnel((2,), (3,)), window=Random(2, low, low))
        assert [t.step for t in pruned.transitions] == [low, low + 1]
        assert all(t.rows.tolist() == list(range(9)) for t in pruned.transitions)


def test_a_funnel_behind_the_fork_prunes_groups_of_shared_noise() -> None:
    policy = model()
    pruned = rolled(policy, Funnel((3,), (2,)), start=Shared(), window=Whole())
    assert pruned.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(pruned.x0.flatten(1).unique(dim=0)) == 6


def test_a_funnel_without_a_score_says_so() -> None:
    with pytest.raises(ValueError, match=r"plan\.prune: a funnel needs rewards to score"):
        roll(model(), PROMPTS, 8, Plan(steps=6, sampler=Cps(), prune=FUNNEL), iteration=0, seed=0)


def test_a_pruning_point_may_lie_at_the_end_of_the_window() -> None:
    plan = Plan(10, FlowSde(), Sliding(3, 1, 1), prune=Funnel((2,), (6, 3), close=True))
    plan.check(FlowPath(), 8)
    assert [plan.course(FlowPath(), iteration, 0).prune for iteration in range(3)] == [
        {2: 6, 3: 3},
        {2: 6, 4: 3},
        {2: 6, 5: 3},
    ]
    pruned = rolled_with(plan)
    assert pruned.group.bincount().tolist() == [3, 3, 3]
    assert set(pruned.previews) == {2, 6}  # iteration 3: the window is 3, 4, 5


def test_a_funnel_at_the_close_goes_with_a_tail() -> None:
    plan = Plan(10, FlowSde(), Sliding(3, 1, 1), prune=Funnel((), (3,), close=True), tail=Tail(0.5))
    plan.check(FlowPath(), 8)
    pruned = rolled_with(plan)
    assert pruned.group.bincount().tolist() == [3, 3, 3]
    assert pruned.x0.isfinite().all()


def rolled_with(plan: Plan) -> Rollout:
    return roll(model(), PROMPTS, 8, plan, iteration=3, seed=5, score=brightness)


def test_an_audited_group_stays_whole_at_the_audit_interval() -> None:
    plan = Plan(6, FlowSde(), prune=Funnel((2, 4), (4, 2), audit=4))
    whole = rolled_with(plan)  # iteration 3 is the fourth
    assert whole.group.bincount().tolist() == [8, 2, 2]
    assert len(whole.previews[2]) == 12
    later = roll(model(), PROMPTS, 8, plan, iteration=4, seed=5, score=brightness)
    assert later.group.bincount().tolist() == [2, 2, 2]


def test_equal_scores_share_a_rank() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, -2.0, 3.0])).tolist() == [4, 2, 4, 1, 4]
    assert ranks(torch.tensor([0.5, 0.5])).tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan(6, FlowSde(), Closed(), prune=Funnel((), (3,), close=True)), "close needs a window"),
        (Plan(6, Cps(), Random(2, 1, 1), prune=Funnel((3,), (3,)), tail=Tail()), r"prune\.at does not go with a tail"),
    ],
)
def test_impossible_funnels_are_refused(plan: Plan, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan.check(FlowPath(), 8)


def test_a_funnel_with_lists_of_unequal_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one shorter than keep"):
        Funnel((2,), (3,), close=True)
