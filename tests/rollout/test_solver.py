"""DPM-Solver++(2M) behind a window: diffusers' own solver, order of convergence, and what a rollout with it costs."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel
from grpaint.core import Cps, FlowPath, FlowSde, Ode, Path, Point, Prediction, Prompt, VpPath, read, step
from grpaint.core.runtime import Runtime
from grpaint.rollout import Closed, Plan, Random, Shared, Sliding, Tail, Whole, multistep, roll
from grpaint.rollout.window import Window


def network(x: Tensor, t: float) -> Tensor:
    """Not linear in anything, and bounded."""
    return torch.tanh(1.3 * x + t) * torch.cos(x.roll(1, -1)) + 0.2 * torch.sin(3 * x)


def chain(path: Path, points: tuple[Point, ...], x: Tensor, kind: str, order: int = 2) -> Tensor:
    before = None
    for here, there in pairwise(points):
        seen = read(network(x, here.sigma), x, here, kind)  # type: ignore[arg-type]
        x, before = multistep(seen, before, here, there, order), (seen.x0, here)
    return x


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("first", [3, 5])
def test_a_flow_chain_is_diffusers(shift: float, first: int) -> None:
    points = FlowPath(shift).grid(12)[first:]
    theirs = DPMSolverMultistepScheduler(
        solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, lower_order_final=True
    )
    theirs.set_timesteps(len(points) - 1)
    theirs.sigmas = torch.tensor([point.sigma for point in points], dtype=torch.float64)
    start = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = start
    for here, t in zip(points, theirs.timesteps, strict=False):
        x = theirs.step(network(x, here.sigma), t, x).prev_sample
    torch.testing.assert_close(chain(FlowPath(shift), points, start, "velocity"), x, rtol=1e-6, atol=1e-6)


def test_an_epsilon_chain_is_diffusers() -> None:
    path = VpPath()
    points = path.grid(12)
    theirs = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(12)
    theirs.sigmas = torch.tensor([point.sigma / point.alpha for point in points], dtype=torch.float64)
    start = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = start
    for here, t in zip(points[:-1], theirs.timesteps, strict=True):
        x = theirs.step(network(x, here.sigma), t, x).prev_sample
    torch.testing.assert_close(chain(path, points, start, "epsilon"), x, rtol=1e-6, atol=1e-6)


def test_order_one_pure_noise_and_a_clean_end_are_the_ode_step() -> None:
    grid = FlowPath().grid(4)
    seen = Prediction(torch.randn(2, 5), torch.randn(2, 5))
    before = torch.randn(2, 5)
    for earlier, here, there, order in (
        (grid[1], grid[2], grid[3], 1),
        (grid[0], grid[1], grid[2], 2),
        (grid[2], grid[3], grid[4], 2),
    ):
        mean = step(Ode(), seen, here, there).mean
        assert torch.equal(multistep(seen, (before, earlier), here, there, order), mean)
        assert torch.equal(multistep(seen, None, here, there), mean)
    assert not torch.equal(multistep(seen, (before, grid[1]), grid[2], grid[3]), step(Ode(), seen, *grid[2:4]).mean)


def test_it_converges_at_second_order_on_the_closed_form() -> None:
    policy = GaussianModel(spread=0.7).load(Runtime())
    cond = policy.encode([Prompt("one")])
    x = policy.noise(("x",), [0]).double()

    def error(steps: int, order: int) -> float:
        points, now, before = [FlowPath().at(0.9 - 0.7 * i / steps) for i in range(steps + 1)], x, None
        for here, there in pairwise(points):
            seen = policy.predict(now, here, cond)
            now, before = multistep(seen, before, here, there, order), (seen.x0, here)
        mean = policy.net(cond.embedding).double()
        spread = [math.sqrt(point.alpha**2 * 0.49 + point.sigma**2) for point in (points[0], points[-1])]
        exact = points[-1].alpha * mean + spread[1] / spread[0] * (x - points[0].alpha * mean)
        return (now - exact).abs().max().item()

    assert 1.9 < error(80, 1) / error(160, 1) < 2.1
    assert 3.6 < error(80, 2) / error(160, 2) < 4.4


@pytest.mark.parametrize("ratio", [0.4, 0.2])
@pytest.mark.parametrize("path", [FlowPath(), FlowPath(3), FlowPath(3, "sd3"), VpPath(), VpPath(final="one")], ids=str)
def test_a_tail_has_its_steps_and_ends_clean(path: Path, ratio: float) -> None:
    grid = path.grid(25)
    for place in range(21):
        points = Tail(ratio).points(path, 25, place + 4)
        assert len(points) - 1 == max(1, math.ceil(round((25 - place - 4) * ratio, 9)))
        assert points[0] == grid[place + 4]
        assert points[-1] == grid[-1]
        sigmas = [point.sigma for point in points]
        assert sigmas == sorted(sigmas, reverse=True)
        assert len(set(sigmas)) == len(sigmas)


@pytest.mark.parametrize(("tail", "calls"), [(None, 190), (Tail(0.4), 116)], ids=["ode", "flash"])
def test_a_prompts_rollout_costs_what_the_fork_and_the_tail_leave(tail: Tail | None, calls: int) -> None:
    policy = GaussianModel().load(Runtime())
    plan = Plan(25, FlowSde(), Sliding(4, 1, 1), start=Shared(), tail=tail)
    plan.check(policy.path, 12)
    for place in range(21):
        roll(policy, [Prompt("one")], 12, plan, iteration=place, seed=0)
    assert round(policy.meter.counts["training"] / 21) == calls


def test_a_tail_leaves_the_window_as_it_was_and_has_fewer_steps() -> None:
    policy = GaussianModel().load(Runtime())
    plain, short = (
        roll(
            policy,
            [Prompt("one"), Prompt("two")],
            3,
            Plan(12, Cps(0.8), Random(2, 3, 3), start=Shared(), tail=tail),
            iteration=0,
            seed=0,
        )
        for tail in (None, Tail(0.5))
    )
    for ours, theirs in zip(short.transitions, plain.transitions, strict=True):
        assert torch.equal(ours.x_next, theirs.x_next)
    assert not torch.equal(short.x0, plain.x0)
    torch.testing.assert_close(short.x0, plain.x0, rtol=0, atol=0.15)


@pytest.mark.parametrize("window", [Whole(skip_last=0), Random(2, 0, 10)], ids=str)
def test_no_tail_follows_a_window_that_closes_at_the_end(window: Window) -> None:
    plan = Plan(12, FlowSde(), window, tail=Tail())
    plan.check(FlowPath(), 4)
    for iteration in range(20):
        legs = plan.course(FlowPath(), iteration, 0).legs
        last = window.steps(12, iteration, 0)[-1]
        assert [leg.in_tail for leg in legs] == [False] * (last + 1) + [True] * (len(legs) - last - 1)
        assert legs[-1].there.sigma == 0


@pytest.mark.parametrize("path", [FlowPath(), VpPath()], ids=["flow", "vp"])
def test_with_a_closed_window_the_tail_is_the_whole_rollout(path: Path) -> None:
    policy = GaussianModel(path=path).load(Runtime())
    plan = Plan(8, window=Closed(), tail=Tail(1.0))
    plan.check(path, 4)
    legs = plan.course(path, 0, 0).legs
    assert [leg.in_tail for leg in legs] == [True] * 8
    assert [leg.here for leg in legs] == list(path.grid(8)[:8])
    rollout = roll(policy, [Prompt("a"), Prompt("b")], 3, plan, iteration=0, seed=0)
    x, before = policy.noise((0, 0, "start"), range(6)), None
    for leg in legs:
        seen = policy.predict(x, leg.here, rollout.cond)
        x, before = multistep(seen, before, leg.here, leg.there, 2), (seen.x0, leg.here)
    assert torch.equal(rollout.x0, x)
    exact = roll(policy, [Prompt("a"), Prompt("b")], 3, Plan(400, window=Closed()), iteration=0, seed=0).x0
    euler = roll(policy, [Prompt("a"), Prompt("b")], 3, Plan(8, window=Closed()), iteration=0, seed=0).x0
    assert (rollout.x0 - exact).norm() < 0.8 * (euler - exact).norm()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"outside": Cps(0.5)}, "noise-free"),
        ({"window": Random(2, 3, 3), "tail": Tail(), "prune": None, "outside": FlowSde()}, "noise-free"),
    ],
)
def test_a_tail_behind_noisy_steps_is_refused(settings: dict[str, object], match: str) -> None:
    plan = Plan(**{"steps": 12, "sampler": Cps(), "window": Random(2, 3, 3), "tail": Tail()} | settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        plan.check(FlowPath(), 4)


def test_a_ratio_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio must lie in"):
        Tail(0.0)
