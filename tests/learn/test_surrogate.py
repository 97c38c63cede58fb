"""Surrogates against their formulas."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grpaint.core import FlowPath, FlowSde, Gaussian, Prediction, step
from grpaint.learn import DivergenceMask, Guard, PpoClip, Reinforce
from grpaint.learn.surrogate import ClippingSurrogate, Surrogate, log_ratio
from grpaint.rollout import Transition

STD = 0.3
ADVANTAGE = torch.tensor([1.5, -2.0, 0.0, 0.7], dtype=torch.float64)


def fields() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean, action, drift = (torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    return mean, mean + STD * action, drift


def acted(mean: Tensor, x_next: Tensor) -> Transition:
    """An action that ``mean`` led to."""
    here, there = FlowPath().grid(4)[:2]
    logp = Gaussian(mean, STD).log_prob(x_next)
    return Transition(0, torch.arange(len(mean)), here, there, mean, x_next, logp, mean, STD)


def moved(scale: float) -> tuple[Tensor, Transition]:
    """Means that have moved by ``scale``, as a leaf, and the actions of where they were."""
    mean, x_next, drift = fields()
    return (mean + scale * drift).requires_grad_(), acted(mean, x_next)


def at_ratio(ratio: Tensor) -> tuple[Tensor, Transition]:
    """A leaf and an action whose ratio under it is ``ratio``."""
    mean, x_next, _ = fields()
    mean, x_next = mean[: len(ratio)], x_next[: len(ratio)]
    action = acted(mean, x_next)
    return mean.clone().requires_grad_(), Transition(**(vars(action) | {"logp": action.logp - ratio.log()}))


def test_the_ratio_is_that_of_mean_log_densities() -> None:
    mean, action = moved(0.05)
    new, old = (torch.distributions.Normal(m, STD).log_prob(action.x_next) for m in (mean, action.mean))
    torch.testing.assert_close(log_ratio(Gaussian(mean, STD), action), (new - old).flatten(1).mean(1))


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1e-4), (1e-2, 5e-2), (0.5, 0.1)])
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 0.3])
def test_ppo_clip_is_its_formula(low: float, high: float, scale: float) -> None:
    mean, action = moved(scale)
    ours = PpoClip(low, high)(Gaussian(mean, STD), action, ADVANTAGE)
    for row in range(4):
        squares = [((action.x_next[row] - m[row]) ** 2).mean() for m in (mean, action.mean)]
        ratio = ((squares[1] - squares[0]) / (2 * STD**2)).exp().item()
        gain = ADVANTAGE[row].item()
        expected = max(-gain * ratio, -gain * min(max(ratio, 1 - low), 1 + high))
        assert ours[row].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("surrogate", [PpoClip(), PpoClip(1e-2, 5e-2), Reinforce()], ids=str)
def test_before_an_update_the_gradient_is_the_policy_gradient(surrogate: Surrogate) -> None:
    mean, action = moved(0.0)
    (ours,) = torch.autograd.grad(surrogate(Gaussian(mean, STD), action, ADVANTAGE).sum(), mean)
    logp = Gaussian(mean, STD).log_prob(action.x_next)
    (expected,) = torch.autograd.grad(-(ADVANTAGE * logp).sum(), mean)
    torch.testing.assert_close(ours, expected)
    by_hand = -ADVANTAGE.view(4, 1, 1, 1) * (action.x_next - mean.detach()) / STD**2 / 18
    torch.testing.assert_close(ours, by_hand)
    assert ours.abs().amax((1, 2, 3)).gt(0).tolist() == [True, True, False, True]


TRUTH = [
    (0.7, 1.0, False),
    (0.7, -1.0, True),
    (0.7, 0.0, False),
    (0.85, -1.0, False),
    (1.0, 1.0, False),
    (1.0, -1.0, False),
    (1.2, 1.0, False),
    (1.4, 1.0, True),
    (1.4, -1.0, False),
    (1.4, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "gain", "stopped"), TRUTH)
def test_ppo_clip_stops_the_gradient_exactly_outside_its_range(ratio: float, gain: float, stopped: bool) -> None:
    clip, ratios = PpoClip(low=0.2, high=0.3), torch.tensor([ratio], dtype=torch.float64)
    advantage = torch.full_like(ratios, gain)
    mean, action = at_ratio(ratios)
    assert clip.clipped(Gaussian(mean, STD), action, advantage).tolist() == [stopped]
    torch.testing.assert_close(log_ratio(Gaussian(mean, STD), action).exp(), ratios)
    (gradient,) = torch.autograd.grad(clip(Gaussian(mean, STD), action, advantage).sum(), mean)
    assert bool(gradient.any()) == (gain != 0 and not stopped)


def test_reinforce_is_minus_the_advantage_times_the_log_density() -> None:
    mean, action = moved(0.1)
    density = torch.distributions.Normal(mean, STD).log_prob(action.x_next).flatten(1).mean(1)
    torch.testing.assert_close(Reinforce()(Gaussian(mean, STD), action, ADVANTAGE), -ADVANTAGE * density)
    assert not isinstance(Reinforce(), ClippingSurrogate)


@pytest.mark.parametrize("settings", [{"low": 0.0}, {"low": -1e-4}, {"high": 0.0}], ids=str)
def test_a_clip_range_that_leaves_no_room_is_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        PpoClip(**settings)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.3])
def test_guard_is_its_published_loss(scale: float) -> None:
    """Section 5 of GRPO-Guard as its code has it: the bias added back, times the std, clipped, over |dt|."""
    mean, action = moved(scale)
    ours = Guard(2e-5, 1e-5)(Gaussian(mean, STD), action, ADVANTAGE)
    for row in range(4):
        old, new = (
            torch.distributions.Normal(m[row], STD).log_prob(action.x_next[row]).mean() for m in (action.mean, mean)
        )
        bias = ((mean[row] - action.mean[row]) ** 2).mean() / (2 * STD**2)
        ratio = ((new - old + bias) * STD).exp().item()
        gain = ADVANTAGE[row].item()
        expected = max(-gain * ratio, -gain * min(max(ratio, 1 - 2e-5), 1 + 1e-5)) / 0.25
        assert ours[row].item() == pytest.approx(expected, rel=1e-9)


def test_guards_log_ratio_is_the_mean_of_noise_times_drift_and_exactly_0_before_an_update() -> None:
    mean, action = moved(0.2)
    noise = (action.x_next - action.mean) / STD
    ours = Guard().ratio(Gaussian(mean, STD), action).log()
    torch.testing.assert_close(ours, (noise * (mean - action.mean)).flatten(1).mean(1))
    assert torch.equal(Guard().ratio(Gaussian(action.mean, STD), action), torch.ones(4, dtype=torch.float64))


def test_guard_weighs_every_step_of_flow_sde_alike() -> None:
    """By the network's velocity the gradient is -A z (1 + eta^2 / 2) / D at every step; without it, late steps rule."""
    grid, sizes = FlowPath().grid(8), {Guard: [], PpoClip: []}
    x, v, noise = (
        torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)
    )
    for here, there in pairwise(grid[1:]):
        for make, size in sizes.items():
            leaf = v.clone().requires_grad_()
            now = step(FlowSde(0.7), Prediction(x - here.sigma * leaf, x + here.alpha * leaf), here, there)
            mean, std = now.mean.detach(), now.std
            x_next = mean + std * noise
            logp = Gaussian(mean, std).log_prob(x_next)
            action = Transition(1, torch.arange(4), here, there, x, x_next, logp, mean, std)
            (gradient,) = torch.autograd.grad(make()(now, action, ADVANTAGE).sum(), leaf)
            size.append(gradient)
    expected = ADVANTAGE.view(4, 1, 1, 1) * noise * (1 + 0.7**2 / 2) / 9
    for gradient in sizes[Guard]:
        torch.testing.assert_close(gradient, expected)
    assert sizes[PpoClip][-1].norm() > 5 * sizes[PpoClip][0].norm()


@pytest.mark.parametrize("limit", [1e-6, 1e-2])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3])
def test_the_divergence_mask_is_its_published_rule(scale: float, limit: float) -> None:
    """Flow-DPPO: the plain ratio; no gradient where the step has moved too far and the update would move it farther."""
    mean, action = moved(scale)
    surrogate = DivergenceMask(limit)
    loss = surrogate(Gaussian(mean, STD), action, ADVANTAGE)
    (gradient,) = torch.autograd.grad(loss.sum(), mean, retain_graph=True)
    for row in range(4):
        old, new = (torch.distributions.Normal(m[row], STD) for m in (action.mean, mean))
        ratio = (new.log_prob(action.x_next[row]) - old.log_prob(action.x_next[row])).mean().exp()
        gain = ADVANTAGE[row].item()
        assert loss[row].item() == pytest.approx(-gain * ratio.item(), rel=1e-9)
        is_far = torch.distributions.kl_divergence(old, new).mean().item() > limit
        is_stopped = is_far and gain * (ratio.item() - 1) > 0
        assert surrogate.clipped(Gaussian(mean, STD), action, ADVANTAGE)[row].item() == is_stopped
        (free,) = torch.autograd.grad(-gain * ratio, mean, retain_graph=True)
        torch.testing.assert_close(gradient[row], free[row] * (not is_stopped))


def test_the_divergence_mask_is_the_policy_gradient_before_an_update() -> None:
    _, action = moved(0.1)
    mean = action.mean.clone().requires_grad_()
    surrogate, now = DivergenceMask(), Gaussian(mean, STD)
    assert not surrogate.clipped(now, action, ADVANTAGE).any()
    (ours,) = torch.autograd.grad(surrogate(now, action, ADVANTAGE).sum(), mean, retain_graph=True)
    (plain,) = torch.autograd.grad(Reinforce()(now, action, ADVANTAGE).sum(), mean)
    assert torch.equal(ours, plain)
    with pytest.raises(ValueError, match="limit must be positive"):
        DivergenceMask(0.0)


def test_guard_says_what_it_clips_by_its_own_ratio() -> None:
    mean, action = moved(1e-3)
    ratio, guard = Guard().ratio(Gaussian(mean, STD), action), Guard(1e-5, 1e-5)
    stopped = ((ratio > 1 + 1e-5) & (ADVANTAGE > 0)) | ((ratio < 1 - 1e-5) & (ADVANTAGE < 0))
    assert torch.equal(guard.clipped(Gaussian(mean, STD), action, ADVANTAGE), stopped)
    (gradient,) = torch.autograd.grad(guard(Gaussian(mean, STD), action, ADVANTAGE).sum(), mean)
    assert (gradient.flatten(1).any(1) == (~stopped & ADVANTAGE.ne(0))).all()
