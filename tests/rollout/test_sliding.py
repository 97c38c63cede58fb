"""Windows that move, and random subsets of the steps: MixGRPO's state machine and DanceGRPO's draw."""

import math

import pytest

from grpaint.core import DanceSde, FlowPath, Ode
from grpaint.rollout import Plan, Shared, Sliding, Subset


def starts(window: Sliding, total: int, iterations: int) -> list[int]:
    chosen_steps = [window.steps(total, iteration, 0) for iteration in range(iterations)]
    assert all(len(steps) == window.size and steps[-1] < total - window.skip_last for steps in chosen_steps)
    return [steps[0] for steps in chosen_steps]


def test_the_published_window_stands_25_iterations_and_moves_by_one() -> None:
    places = starts(Sliding(4, 25, 1), 25, 300)
    assert places == [iteration // 25 for iteration in range(300)]
    assert set(places) == set(range(12))


def test_the_last_place_leaves_out_the_last_step_and_then_it_begins_again() -> None:
    places = starts(Sliding(4, 1, 1), 25, 50)
    assert places[:21] == list(range(21))
    assert places[21:42] == list(range(21))
    assert list(Sliding(4, 1, 1).reach(25)) == list(range(24))


def test_strides_without_overlap_and_frozen() -> None:
    assert starts(Sliding(4, 2, 4), 25, 14) == [0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 0, 0]
    assert set(starts(Sliding(4, 3, 0), 25, 40)) == {0}
    assert list(Sliding(4, 3, 0).reach(25)) == [0, 1, 2, 3]


def test_sliding_windows_with_decay_stay_ever_shorter() -> None:
    linear = starts(Sliding(4, 10, 1, "linear"), 25, 200)
    stays = [linear[: linear.index(20) + 1].count(place) for place in range(21)]
    assert stays[0] == 10
    assert stays == sorted(stays, reverse=True)
    assert stays[-1] == 1
    expected = [math.ceil(20 * math.exp(-0.1 * max(0, place - 13))) for place in range(21)]
    exponential = starts(Sliding(4, 20, 1, "exponential"), 25, sum(expected))
    assert [exponential.count(place) for place in range(21)] == expected


@pytest.mark.parametrize("settings", [{"size": 0}, {"every": 0}, {"stride": -1}, {"skip_last": -1}], ids=str)
def test_an_impossible_window_is_refused(settings: dict[str, int]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        Sliding(**settings)


def test_a_window_wider_than_the_steps_is_refused() -> None:
    Sliding(7).check(8)
    with pytest.raises(ValueError, match="must fit in 8 steps"):
        Sliding(8).check(8)


def test_a_subset_is_drawn_once_an_iteration_from_all_but_the_last() -> None:
    window = Subset(0.6)
    drawn = [window.steps(10, iteration, 3) for iteration in range(60)]
    assert all(list(steps) == sorted(set(steps)) and len(steps) == 6 for steps in drawn)  # ceil(0.6 * 9)
    assert {step for steps in drawn for step in steps} == set(range(9)) == set(window.reach(10))
    assert len(set(drawn)) > 20
    assert drawn == [window.steps(10, iteration, 3) for iteration in range(60)]
    assert drawn != [window.steps(10, iteration, 4) for iteration in range(60)]
    assert len(Subset(1.0).steps(10, 0, 0)) == 9
    with pytest.raises(ValueError, match="share must lie in"):
        Subset(0.0)


def test_a_noisy_outside_forks_at_the_first_step_and_a_quiet_one_at_the_first_of_the_window() -> None:
    sampler = DanceSde(0.3)
    noisy = Plan(10, sampler, Subset(0.3), start=Shared(), outside=sampler).course(FlowPath(), 1, 0)
    quiet = Plan(10, sampler, Subset(0.3), start=Shared()).course(FlowPath(), 1, 0)
    assert noisy.fork == 0
    assert quiet.fork == next(leg.step for leg in quiet.legs if leg.trained)
    assert [leg.trained for leg in noisy.legs] == [leg.trained for leg in quiet.legs]
    assert sum(leg.std > 0 for leg in noisy.legs) == 9  # no noise is left in a finished image
    assert noisy.legs[-1].sampler == Ode()
    assert sum(leg.std > 0 for leg in quiet.legs) == 3
