"""Penalties against their formulas and against torch.distributions."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import Cps, Ddim, FlowPath, FlowSde, Gaussian, Path, Prediction, Prompt, Sampler, VpPath
from grpaint.core.runtime import Runtime
from grpaint.learn import AdaptiveKl, PolicyGradient, Reinforce, StepKl, VelocityMse
from grpaint.learn.penalty import Penalty
from grpaint.rollout import Plan, Rollout, Transition, act, roll
from grpaint.rollout.rollout import StepOutput

KERNELS = [(FlowPath(3), FlowSde()), (FlowPath(), Cps()), (VpPath(), Ddim())]
PROMPTS = [Prompt("one"), Prompt("two")]
PENALTIES = [StepKl(0.5), StepKl(0.5, "published"), AdaptiveKl(0.1, 0.5), VelocityMse(0.5)]


def drifted(path: Path, sampler: Sampler) -> tuple[GaussianPolicy, Rollout]:
    """A rollout, and its policy some way off the reference."""
    policy = GaussianModel(path=path).load(Runtime())
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.2)
    return policy, roll(policy, PROMPTS, 3, Plan(steps=6, sampler=sampler), iteration=0, seed=0)


def both(policy: GaussianPolicy, rollout: Rollout, part: Transition) -> tuple[StepOutput, StepOutput]:
    step = (policy, rollout.sampler, part.x, part.here, part.there, rollout.cond.rows(part.rows))
    with torch.no_grad():
        reference = act(*step, "reference")
    return act(*step), reference


@pytest.mark.parametrize(("path", "sampler"), KERNELS, ids=["flow-sde", "cps", "ddim"])
def test_the_step_kl_is_that_of_normals_averaged_over_elements(path: Path, sampler: Sampler) -> None:
    policy, rollout = drifted(path, sampler)
    for part in rollout.transitions:
        now, reference = both(policy, rollout, part)
        cost, kl = StepKl(0.3)(now, reference, part)
        normals = [Normal(each.gaussian.mean.double(), each.gaussian.std) for each in (now, reference)]
        expected = kl_divergence(*normals).flatten(1).mean(1).float()
        torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(cost, 0.3 * kl)
        assert kl.min() > 1e-6


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(3), FlowPath(3, "sd3")], ids=["plain", "shifted", "sd3"])
def test_the_published_scale_is_the_expression_of_flow_grpo(path: Path) -> None:
    policy, rollout = drifted(path, FlowSde(0.7))
    grid = path.grid(6)
    for part in rollout.transitions:
        now, reference = both(policy, rollout, part)
        cost, _ = StepKl(0.04, "published")(now, reference, part)
        s = grid[part.step].sigma
        g = 0.7 * math.sqrt(s / (1 - (grid[1].sigma if part.step == 0 else s)))
        published = ((now.gaussian.mean - reference.gaussian.mean) ** 2).mean((1, 2, 3)) / (2 * g**2)
        torch.testing.assert_close(cost, 0.04 * published, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("drift", [1e-6, 1e-4, 1e-2])
def test_a_small_step_kl_is_not_lost_in_rounding(drift: float) -> None:
    mean = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step = drift * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    now, reference = Gaussian(step, 0.3), Gaussian(torch.zeros_like(mean), 0.3)
    expected = (step.double() ** 2).mean((1, 2, 3)) / (2 * 0.3**2)
    torch.testing.assert_close(now.kl(reference).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize(("path", "sampler"), KERNELS, ids=["flow-sde", "cps", "ddim"])
def test_there_is_no_penalty_at_the_reference(path: Path, sampler: Sampler, penalty: Penalty) -> None:
    policy = GaussianModel(path=path).load(Runtime())
    rollout = roll(policy, PROMPTS, 3, Plan(steps=6, sampler=sampler), iteration=0, seed=0)
    for part in rollout.transitions:
        cost, distance = penalty(*both(policy, rollout, part), part)
        torch.testing.assert_close(torch.stack([cost, distance]), torch.zeros(2, 6), rtol=0, atol=1e-7)
        (gradient,) = torch.autograd.grad(cost.sum(), policy.net.shift)
        assert not gradient.any()


def test_velocity_mse_is_the_squared_difference_of_velocities() -> None:
    generator = torch.Generator().manual_seed(0)
    v, w, x = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3))
    here, there = FlowPath().grid(4)[1:3]
    now, reference = (
        StepOutput(Gaussian(x, 1.0), Prediction(x - here.sigma * out, x + here.alpha * out)) for out in (v, w)
    )
    part = Transition(1, torch.arange(4), here, there, x, x, torch.zeros(4), x, 1.0)
    cost, distance = VelocityMse(0.2)(now, reference, part)
    torch.testing.assert_close(distance, ((v - w) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(cost, 0.2 * distance)


def gradient(policy: GaussianPolicy, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(policy.parameters())))


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_the_gradient_of_a_penalty_is_that_of_current_weights_against_fixed_ones(penalty: Penalty) -> None:
    policy, rollout = drifted(FlowPath(3), FlowSde())
    reference = {name: copy.clone() for name, copy in policy.weights.copies["reference"].items()}
    advantage = torch.full((6,), 1e-30)  # moves, but pushes nowhere
    terms = list(PolicyGradient(Reinforce(), penalty)(policy, rollout, advantage))
    ours = gradient(policy, sum((term.loss for term in terms), torch.zeros(())))
    fixed = torch.zeros(())
    for part in rollout.transitions:
        fixed = fixed + penalty(*both(policy, rollout, part), part)[0].sum() / 30
    for one, other in zip(ours, gradient(policy, fixed), strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, other)
    for name, copy in policy.weights.copies["reference"].items():
        assert torch.equal(copy, reference[name])
        assert not copy.requires_grad


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_step_along_the_gradient_leads_back_to_the_reference(penalty: Penalty) -> None:
    policy, rollout = drifted(FlowPath(), FlowSde())

    def distance() -> float:
        parts = [penalty(*both(policy, rollout, part), part)[0] for part in rollout.transitions]
        loss = torch.cat(parts).mean()
        with torch.no_grad():
            for parameter, slope in zip(policy.parameters(), gradient(policy, loss), strict=True):
                parameter.sub_(slope, alpha=0.02 / slope.norm().item())
        return loss.item()

    walk = [distance() for _ in range(12)]
    assert all(later < earlier for earlier, later in pairwise(walk))


def test_adaptive_kl_follows_ziegler() -> None:
    penalty = AdaptiveKl(target=0.1, beta=0.01, rate=0.5)
    path = []
    for kl in (0.11, 0.1, 0.5, 0.085, 0.0, math.nan, math.inf):
        penalty.observe(kl)
        path.append(penalty.state_dict()["beta"])
    expected = [0.01 * 1.05]
    for factor in (1, 1.1, 1 - 0.075, 0.9):
        expected.append(expected[-1] * factor)
    expected += expected[-1:] * 2
    assert path == pytest.approx(expected)


def test_adaptive_kl_is_the_step_kl_with_the_beta_reached() -> None:
    policy, rollout = drifted(FlowPath(3), FlowSde())
    part = rollout.transitions[1]
    for scale in ("true", "published"):
        penalty = AdaptiveKl(target=0.1, beta=0.02, scale=scale)
        penalty.observe(9.0)
        ours, expected = (each(*both(policy, rollout, part), part) for each in (penalty, StepKl(0.022, scale)))
        torch.testing.assert_close(ours, expected)


def test_adaptive_kl_survives_json() -> None:
    penalty, other = AdaptiveKl(target=0.1), AdaptiveKl(target=0.1)
    for _ in range(3):
        penalty.observe(1.0)
    other.load_state_dict(json.loads(json.dumps(penalty.state_dict())))
    for each in (penalty, other):
        each.observe(0.05)
    assert other.state_dict() == penalty.state_dict()
    assert penalty.state_dict()["beta"] == pytest.approx(0.01 * 1.1**3 * 0.9)


@pytest.mark.parametrize("make", [StepKl, VelocityMse, lambda beta: AdaptiveKl(0.1, beta)])
def test_a_negative_beta_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="beta must not be negative"):
        make(-0.1)  # type: ignore[operator]


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_a_target_that_cannot_be_reached_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="target must be positive"):
        AdaptiveKl(target)
