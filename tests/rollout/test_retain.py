"""Graphs kept from the rollout: the same actions, the same gradients, and no second forward."""

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, FlowSde, Policy, Prompt, noise
from grpaint.core.runtime import Runtime
from grpaint.learn import PolicyGradient, StepKl, VelocityMse
from grpaint.recipe.config import open_recipe
from grpaint.recipe.costs import costs
from grpaint.rollout import Funnel, Plan, Random, Rollout, Shared, Sliding, Whole, roll

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares")]
PLANS = {
    "whole": Plan(5, FlowSde(), Whole()),
    "shared window": Plan(6, Cps(0.7), Random(2, 2, 2), start=Shared()),
    "sliding": Plan(6, Cps(0.7), Sliding(3, 1, 1), start=Shared()),
    "pruned": Plan(5, FlowSde(), Whole(), prune=Funnel((2,), (3,))),
}
ADVANTAGE = torch.tensor([1.0, -0.5, 2.0, 0.0, -1.5, 0.3, 0.7, -0.2])


def gaussian() -> Policy:
    return GaussianModel(spread=1.0).load(Runtime())


def scenes() -> Policy:
    policy = Scenes(start="random").load(Runtime())
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise(("perturb",), [number], parameter.shape)[0], alpha=0.03)
    return policy


def rolled(policy: Policy, plan: Plan, *, retain: bool) -> Rollout:
    def score(images: Tensor, prompts: object, references: object = None) -> Tensor:
        return images.flatten(1).mean(1)

    return roll(policy, PROMPTS, 4, plan, iteration=1, seed=2, score=score, retain=retain)


def gradient(policy: Policy, objective: PolicyGradient, rollout: Rollout) -> Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    for term in objective(policy, rollout, ADVANTAGE[: len(rollout.group)]):
        assert (term.measures["ratio_error"] <= 1e-6).all()
        term.loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("make", [gaussian, scenes])
@pytest.mark.parametrize("name", PLANS)
def test_the_same_actions_and_the_same_gradient(name: str, make: object) -> None:
    policy = make()  # type: ignore[operator]
    retained, plain = (rolled(policy, PLANS[name], retain=retain) for retain in (True, False))
    assert torch.equal(retained.x0, plain.x0)
    for ours, theirs in zip(retained.transitions, plain.transitions, strict=True):
        assert ours.live
        assert ours.live[0].mean.requires_grad
        assert theirs.live is None
        for part in ("rows", "x", "x_next", "mean", "logp"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))
            assert not getattr(ours, part).requires_grad
    one, other = (gradient(policy, PolicyGradient(), rollout) for rollout in (retained, plain))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())
    assert one.abs().max() > 0


@pytest.mark.parametrize("penalty", [StepKl(0.1), VelocityMse(0.1)], ids=str)
def test_a_penalty_reads_the_retained_prediction(penalty: StepKl | VelocityMse) -> None:
    policy = gaussian()
    policy.blend("reference", 0.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    objective = PolicyGradient(penalty=penalty)
    retained, plain = (rolled(policy, PLANS["whole"], retain=retain) for retain in (True, False))
    one, other = (gradient(policy, objective, rollout) for rollout in (retained, plain))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_no_forward_is_repeated() -> None:
    policy = gaussian()
    retained = rolled(policy, PLANS["shared window"], retain=True)
    after = policy.meter.counts["training"]
    assert after == 2 * 2 + 8 * (2 * 3 + 2)  # forward and backward of the window's steps are booked where they run
    gradient(policy, PolicyGradient(), retained)
    assert policy.meter.counts["training"] == after
    gradient(policy, PolicyGradient(), rolled(policy, PLANS["shared window"], retain=False))
    moving = int((ADVANTAGE != 0).sum())
    assert policy.meter.counts["training"] == after + 2 * 2 + 8 * 4 + moving * 2 * 3


def test_rows_without_advantage_give_no_gradient() -> None:
    policy = gaussian()
    retained = rolled(policy, PLANS["whole"], retain=True)
    assert list(PolicyGradient()(policy, retained, torch.zeros(8))) == []


def test_show_says_what_the_graphs_hold_and_what_the_iteration_costs() -> None:
    sets = ["train.retain=true", "train.prompts=2", "train.group_size=4", "precision=fp32", "model.start=random"]
    recipe, _ = open_recipe("mix-grpo", "train", sets)
    expenses = costs(recipe)
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    policy = recipe.model.load(Runtime("cpu", "fp32"))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        rollout = roll(policy, recipe.data.prompts(2, 0, 0), 4, recipe.plan, iteration=0, seed=0, retain=True)
    for parameter in policy.parameters():
        seen.pop(parameter.data_ptr(), None)
    assert sum(seen.values()) / 2**20 == pytest.approx(expenses["retained_mib"], rel=0.1)
    assert policy.meter.counts["training"] == expenses["evaluations_rollout"]
    assert len(rollout.transitions) == 2
