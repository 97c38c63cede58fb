"""Windows: which steps explore, as a function of the seed and the iteration alone."""

import pytest
import torch

from grpaint.core import Cps, Ddim, FlowPath, FlowSde, Ode, VpPath
from grpaint.rollout import Closed, Plan, Prefix, Random, Whole
from grpaint.rollout.window import Window


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Whole(), range(9)),
        (Whole(skip_last=0), range(10)),
        (Whole(skip_last=3), range(7)),
        (Prefix(1), range(1)),
        (Prefix(10), range(10)),
        (Closed(), range(0)),
        (Random(size=3, low=4, high=4), range(4, 7)),
    ],
    ids=str,
)
def test_a_fixed_window_names_its_steps_whatever_the_iteration(window: Window, expected: range) -> None:
    window.check(10)
    assert {window.steps(10, iteration, seed) for iteration in range(5) for seed in range(3)} == {expected}


def test_a_random_window_reaches_every_start_from_low_to_high_and_no_other() -> None:
    window = Random(size=3, low=1, high=5)
    drawn = [window.steps(10, iteration, 0) for iteration in range(500)]
    assert {len(steps) for steps in drawn} == {3}
    starts = [steps.start for steps in drawn]
    counts = [starts.count(first) for first in range(1, 6)]
    assert sum(counts) == 500
    assert min(counts) > 70  # 100 each on average, standard deviation 9


def test_a_random_window_is_a_function_of_seed_and_iteration_alone() -> None:
    def drawn(seed: int) -> list[range]:
        return [Random(2, 0, 8).steps(10, iteration, seed) for iteration in range(40)]

    first = drawn(0)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert drawn(0) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn(1) != first
    backwards = [Random(2, 0, 8).steps(10, iteration, 0) for iteration in reversed(range(40))]
    assert backwards[::-1] == first


@pytest.mark.parametrize(
    ("window", "total"),
    [
        (Whole(skip_last=10), 10),
        (Whole(skip_last=-1), 10),
        (Prefix(0), 10),
        (Prefix(11), 10),
        (Random(size=0, low=0, high=5), 10),
        (Random(size=2, low=-1, high=5), 10),
        (Random(size=2, low=6, high=5), 10),
        (Random(size=2, low=0, high=9), 10),
    ],
    ids=str,
)
def test_a_window_that_cannot_lie_within_the_steps_is_refused(window: Window, total: int) -> None:
    with pytest.raises(ValueError, match=rf"{total} steps|1\.\.{total}"):
        window.check(total)
    with pytest.raises(ValueError):
        Plan(steps=total, sampler=FlowSde(), window=window).check(FlowPath(), 4)


@pytest.mark.parametrize(
    ("window", "total"), [(Whole(9), 10), (Prefix(10), 10), (Random(2, 0, 8), 10), (Closed(), 1)], ids=str
)
def test_a_window_that_just_fits_is_accepted(window: Window, total: int) -> None:
    window.check(total)


def test_a_plan_refuses_to_train_a_step_without_noise() -> None:
    with pytest.raises(ValueError, match="no noise at step 0"):
        Plan(steps=10, sampler=Ode(), window=Whole()).check(FlowPath(), 4)
    with pytest.raises(ValueError, match="no noise at step 9"):
        Plan(steps=10, sampler=Cps(), window=Whole(skip_last=0)).check(FlowPath(), 4)
    Plan(steps=10, sampler=FlowSde(), window=Whole(skip_last=0)).check(FlowPath(), 4)
    Plan(steps=10, sampler=Ddim(), window=Whole(skip_last=0)).check(VpPath(), 4)
    Plan(steps=10, sampler=Ode(), window=Closed()).check(FlowPath(), 4)


def test_a_plan_refuses_a_flow_sampler_on_a_diffusion_path() -> None:
    with pytest.raises(ValueError, match="for flows"):
        Plan(steps=10, sampler=FlowSde()).check(VpPath(), 4)
