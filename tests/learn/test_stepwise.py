"""Step-aware advantages: credit for what an action can influence, and for nothing else."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import Annealed, Cps, FlowPath, Ode, Prediction, Prompt, VpPath, step
from grpaint.core.runtime import Runtime
from grpaint.learn import GroupNorm, PolicyGradient, RewardTable, StepAware
from grpaint.rollout import Plan, Rollout, Whole, roll


def brightness(images: Tensor, *_: object) -> Tensor:
    return images.flatten(1).mean(1)


def rolled(policy: GaussianPolicy, steps: int, group: int = 6, iteration: int = 0) -> Rollout:
    plan = Plan(steps, Annealed(1.0, 0.4), Whole(), previews=True)
    prompts = [Prompt("one"), Prompt("two")]
    return roll(policy, prompts, group, plan, iteration=iteration, seed=0, score=brightness)


def model() -> GaussianPolicy:
    return GaussianModel(spread=1.0).load(Runtime())


def normal(rollout: Rollout, score: Tensor) -> Tensor:
    return GroupNorm(clip=math.inf)(RewardTable({"r": score}), rollout)


def test_an_action_gets_the_faded_mean_of_later_previews() -> None:
    policy = model()
    rollout = rolled(policy, 5)
    final = brightness(policy.decode(rollout.x0))
    assert sorted(rollout.previews) == [1, 2, 3]  # actions at 0 .. 3; the fourth preview is the finished image
    advantage = StepAware(fade=0.5)(RewardTable({"r": final}), rollout)
    seen = {k: normal(rollout, score) for k, score in rollout.previews.items()} | {4: normal(rollout, final)}
    for k in range(4):
        weights = {j: 0.5 ** (4 - j) for j in range(k + 1, 5)}
        expected = sum(weights[j] * seen[j] for j in weights) / sum(weights.values())
        torch.testing.assert_close(advantage[:, k], expected)


def test_without_memory_of_previews_it_is_the_terminal_advantage() -> None:
    policy = model()
    rollout = rolled(policy, 5)
    final = brightness(policy.decode(rollout.x0))
    advantage = StepAware(fade=0.0)(RewardTable({"r": final}), rollout)
    for k in range(4):
        assert torch.equal(advantage[:, k], GroupNorm()(RewardTable({"r": final}), rollout))


def test_two_steps_have_one_action() -> None:
    rollout = rolled(model(), 2)
    assert [transition.step for transition in rollout.transitions] == [0]
    assert rollout.previews == {}
    assert StepAware()(RewardTable({"r": brightness(rollout.x0)}), rollout).shape == (12, 1)


def test_the_unshifted_pairing_has_no_gradient_on_average_and_the_shifted_one_has() -> None:
    """The clean prediction at step k depends on x_k alone: the noise drawn there cannot have earned its reward."""
    policy = model()
    sums: dict[str, list[Tensor]] = {"own": [], "next": []}
    for iteration in range(40):
        rollout = rolled(policy, 4, group=128, iteration=iteration)
        seen = {k: normal(rollout, score) for k, score in rollout.previews.items()}
        for name, pairing in (("own", {1: 1}), ("next", {0: 1})):
            advantage = torch.zeros(256, 3)
            for action, preview in pairing.items():
                advantage[:, action] = seen[preview]
            policy.net.zero_grad()
            for term in PolicyGradient()(policy, rollout, advantage):
                term.loss.backward()
            gradient = policy.net.shift.grad
            assert gradient is not None
            sums[name].append(gradient.sum().clone())
    own, shifted = (torch.stack(values) for values in sums.values())
    assert own.mean().abs() < 4 * own.std() / math.sqrt(40)
    assert shifted.mean() < -10 * shifted.std() / math.sqrt(40)  # towards brighter images
    assert own.mean().abs() < 0.1 * shifted.mean().abs()


@pytest.mark.parametrize(
    ("settings", "name"), [({"fade": -0.1}, "fade"), ({"fade": 1.1}, "fade"), ({"clip": 0.0}, "clip")]
)
def test_impossible_values_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        StepAware(**settings)


def test_a_terminal_term_moves_the_model_towards_what_scored_well() -> None:
    policy = model()
    rollout = rolled(policy, 3, group=64)
    final = brightness(policy.decode(rollout.x0))
    gain = GroupNorm()(RewardTable({"r": final}), rollout)
    objective = PolicyGradient(terminal=0.5)
    *_, last = objective(policy, rollout, gain)
    plain = list(PolicyGradient()(policy, rollout, gain))
    assert "terminal" in last.measures
    assert len(list(objective(policy, rollout, gain))) == len(plain) + 1
    policy.net.zero_grad()
    last.loss.backward()
    assert policy.net.shift.grad is not None
    assert policy.net.shift.grad.sum() < 0  # the shift of the mean is to grow: brighter
    with pytest.raises(ValueError, match="terminal must not be negative"):
        PolicyGradient(terminal=-1.0)


@pytest.mark.parametrize("path", [FlowPath(), FlowPath(3), VpPath()], ids=str)
def test_annealing_lies_between_the_ode_and_full_renoising(path: FlowPath | VpPath) -> None:
    grid = path.grid(6)
    seen = Prediction(torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64))
    for here, there in itertools.pairwise(grid):
        assert torch.equal(step(Annealed(0.0, 0.0), seen, here, there).mean, step(Ode(), seen, here, there).mean)
        gain, std = Annealed(1.0, 1.0)(here, there)
        assert gain == pytest.approx(0, abs=1e-15)
        assert std == there.sigma
        gain, std = Annealed(1.0, 0.4)(here, there)
        assert gain**2 + std**2 == pytest.approx(there.sigma**2)
        level = there.sigma / (there.alpha + there.sigma)
        assert (gain, std) == Cps(0.4 + 0.6 * level)(here, there)
