"""The likelihood objective: what it sums, what it leaves out, and that minibatches change nothing but memory."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, FlowPath, FlowSde, Gaussian, Policy, Prompt, noise
from grpaint.core.runtime import Runtime
from grpaint.learn import AdaptiveKl, GroupNorm, PolicyGradient, PpoClip, Reinforce, RewardTable, StepKl, VelocityMse
from grpaint.learn.objective import Denoising
from grpaint.learn.penalty import Penalty
from grpaint.rollout import Plan, Reference, Rollout, Transition, Whole, act, roll

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a green cross")]
ADVANTAGE = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.3, 0.7, -0.2, 1.1, -2.0, 0.4, 0.9, -0.6])
HALF = torch.tensor([1.0, -0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 2.0, -1.0, -1.0, 0.0])
PENALTIES = [None, StepKl(0.5), StepKl(0.5, "published"), VelocityMse(0.5), AdaptiveKl(0.1, 0.5)]


def drift(policy: Policy, size: float, key: str) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise((key,), [number], parameter.shape)[0], alpha=size)


def gaussian() -> GaussianPolicy:
    return GaussianModel(path=FlowPath(3)).load(Runtime())


def rolled(policy: Policy, **settings: object) -> Rollout:
    plan = Plan(**{"steps": 5, "sampler": FlowSde()} | settings)  # type: ignore[arg-type]
    return roll(policy, PROMPTS, 4, plan, iteration=0, seed=0)


def off_policy() -> tuple[GaussianPolicy, Rollout]:
    """A policy that has moved since its rollout, so that ratios and penalties are not trivial."""
    policy = gaussian()
    rollout = rolled(policy)
    drift(policy, 0.02, "moved")
    return policy, rollout


def gradient(objective: PolicyGradient, policy: Policy, rollout: Rollout, advantage: Tensor) -> Tensor:
    """What the loop accumulates: backward on each term in turn."""
    for parameter in policy.parameters():
        parameter.grad = None
    for term in objective(policy, rollout, advantage):
        term.loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def loss(objective: PolicyGradient, policy: Policy, rollout: Rollout, advantage: Tensor) -> float:
    return sum(term.loss.item() for term in objective(policy, rollout, advantage))


def differ(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.norm() > 0
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("minibatch", [1, 5, 12, 100])
def test_minibatches_add_up_to_the_full_batch(minibatch: int, penalty: Penalty | None) -> None:
    policy, rollout = off_policy()
    whole, parts = (PolicyGradient(PpoClip(0.01, 0.01), penalty, size) for size in (0, minibatch))
    expected = gradient(whole, policy, rollout, ADVANTAGE)
    assert differ(gradient(parts, policy, rollout, ADVANTAGE), expected) <= 1e-6
    assert loss(parts, policy, rollout, ADVANTAGE) == pytest.approx(loss(whole, policy, rollout, ADVANTAGE), abs=1e-6)
    terms = list(parts(policy, rollout, ADVANTAGE))
    assert [term.step for term in terms] == [k for k in range(4) for _ in range(-(-12 // minibatch))]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("penalty", [None, StepKl(0.1), VelocityMse(0.1)], ids=str)
def test_minibatches_add_up_to_the_full_batch_of_a_network(guidance: float, penalty: Penalty | None) -> None:
    policy = Scenes(start="random", guidance=guidance).load(Runtime())
    drift(policy, 0.03, "perturb")
    rollout = roll(policy, PROMPTS[:2], 3, Plan(3, Cps()), iteration=0, seed=0)
    whole, parts = (PolicyGradient(penalty=penalty, minibatch=size) for size in (0, 4))
    expected = gradient(whole, policy, rollout, ADVANTAGE[:6])
    assert differ(gradient(parts, policy, rollout, ADVANTAGE[:6]), expected) <= 1e-5


def test_shuffled_rows_have_the_same_gradient() -> None:
    policy, rollout = off_policy()
    order = torch.tensor([5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6])
    objective = PolicyGradient(penalty=StepKl(0.5))
    expected = gradient(objective, policy, rollout, ADVANTAGE)
    assert differ(gradient(objective, policy, rollout.rows(order), ADVANTAGE[order]), expected) <= 1e-6


@pytest.mark.parametrize("penalty", [None, StepKl(0.5)], ids=str)
def test_the_loss_is_the_mean_of_its_formula_over_rows_and_steps(penalty: Penalty | None) -> None:
    policy, rollout = off_policy()
    expected = 0.0
    for t in rollout.transitions:
        now, was = (
            act(policy, rollout.sampler, t.x, t.here, t.there, rollout.cond, weights)[0]
            for weights in ("current", "reference")
        )
        ratio = (now.log_prob(t.x_next) - t.logp).exp()
        row = torch.maximum(-ADVANTAGE * ratio, -ADVANTAGE * ratio.clamp(0.99, 1.01))
        if penalty:
            row = row + 0.5 * ((now.mean - was.mean) ** 2).mean((1, 2, 3)) / (2 * t.std**2)
        expected += row.sum().item() / 48
    ours = loss(PolicyGradient(PpoClip(0.01, 0.01), penalty), policy, rollout, ADVANTAGE)
    assert ours == pytest.approx(expected, abs=1e-6)


def test_weights_of_steps_apply_to_the_surrogate_and_not_to_the_penalty() -> None:
    policy, rollout = off_policy()
    stds = [transition.std for transition in rollout.transitions]
    weights = [4 * std / sum(stds) for std in stds]
    terms = {
        penalty: [t.loss.item() for t in PolicyGradient(Reinforce(), penalty)(policy, rollout, ADVANTAGE)]
        for penalty in (None, StepKl(0.5))
    }
    plain, penalised = terms.values()
    expected = sum(w * a + (b - a) for w, a, b in zip(weights, plain, penalised, strict=True))
    weighted = PolicyGradient(Reinforce(), StepKl(0.5), steps="noise")
    assert loss(weighted, policy, rollout, ADVANTAGE) == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(sum(penalised), abs=1e-3)


def test_before_an_update_the_gradient_is_that_of_advantage_times_log_likelihood() -> None:
    policy = gaussian()
    rollout = rolled(policy)
    likelihood = torch.zeros(())
    for t in rollout.transitions:
        now, _ = act(policy, rollout.sampler, t.x, t.here, t.there, rollout.cond)
        likelihood = likelihood + (ADVANTAGE * now.log_prob(t.x_next)).sum() / 48
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-likelihood, list(policy.parameters()))])
    for surrogate in (PpoClip(), Reinforce()):
        assert differ(gradient(PolicyGradient(surrogate), policy, rollout, ADVANTAGE), expected) <= 1e-6


@pytest.mark.parametrize("penalty", [None, StepKl(0.5)], ids=str)
def test_rows_without_advantage_ask_nothing_of_the_model_but_are_counted(penalty: Penalty | None) -> None:
    policy, rollout = off_policy()
    policy.meter.counts.clear()
    objective = PolicyGradient(penalty=penalty)
    terms = list(objective(policy, rollout, HALF))
    moving = HALF.nonzero()[:, 0]
    assert all(len(values) == len(moving) for term in terms for values in term.measures.values())
    assert policy.meter.counts["training"] == 4 * len(moving) * (4 if penalty else 3)
    alone = loss(objective, policy, rollout.rows(moving), HALF[moving])
    assert sum(term.loss.item() for term in terms) == pytest.approx(alone * len(moving) / 12, abs=1e-6)


def test_a_group_without_spread_contributes_no_term() -> None:
    policy, rollout = off_policy()
    reward = torch.tensor([0.1, 0.9, 0.4, 0.2] + [1 / 3] * 4 + [0.0, 1.0, 1.0, 0.0])
    advantage = GroupNorm()(RewardTable({"r": reward}), rollout)
    policy.meter.counts.clear()
    terms = list(PolicyGradient()(policy, rollout, advantage))
    assert [len(term.measures["ratio_error"]) for term in terms] == [8] * 4
    assert policy.meter.counts["training"] == 3 * 8 * 4


@pytest.mark.parametrize("penalty", [None, StepKl(0.5)], ids=str)
def test_a_batch_without_spread_yields_no_terms_and_costs_nothing(penalty: Penalty | None) -> None:
    policy, rollout = off_policy()
    policy.meter.counts.clear()
    assert list(PolicyGradient(penalty=penalty, minibatch=2)(policy, rollout, torch.zeros(12))) == []
    assert list(PolicyGradient(penalty=penalty)(policy, rollout, torch.zeros(12, 5))) == []
    assert not policy.meter.counts


def test_advantages_may_differ_between_steps() -> None:
    policy, rollout = off_policy()
    objective = PolicyGradient()
    expected = gradient(objective, policy, rollout, ADVANTAGE)
    repeated = ADVANTAGE[:, None].repeat(1, 5)
    assert torch.equal(gradient(objective, policy, rollout, repeated), expected)
    by_step = []
    for k in range(4):
        only = torch.zeros(12, 5)
        only[:, k] = ADVANTAGE
        assert [term.step for term in objective(policy, rollout, only)] == [k]
        by_step.append(gradient(objective, policy, rollout, only))
    assert differ(torch.stack(by_step).sum(0), expected) <= 1e-6


def test_a_step_that_is_not_recorded_has_no_part_in_advantages_by_step() -> None:
    policy, rollout = off_policy()
    last = torch.zeros(12, 5)
    last[:, 4] = 1.0
    assert list(PolicyGradient()(policy, rollout, last)) == []


def test_rows_that_entered_late_count_for_the_steps_they_took() -> None:
    policy = gaussian()
    given = [Prompt(p.text, reference=torch.full((3, 4, 4), 0.8)) for p in PROMPTS]
    plan = Plan(5, FlowSde(), Whole(), start=Reference(strength=0.8, share=0.7))
    rollout = roll(policy, given, 4, plan, iteration=0, seed=0)
    counts = [len(t.rows) for t in rollout.transitions]
    assert counts[0] == 4
    assert counts[-1] == 12
    terms = list(PolicyGradient(Reinforce())(policy, rollout, ADVANTAGE))
    for term, t in zip(terms, rollout.transitions, strict=True):
        expected = -(ADVANTAGE[t.rows] * t.logp).sum() / sum(counts)
        torch.testing.assert_close(term.loss.detach(), expected)


def test_terms_can_run_backward_one_by_one_and_move_no_weights() -> None:
    policy, rollout = off_policy()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    norms = [0.0]
    for term in PolicyGradient(PpoClip(0.1, 0.1), VelocityMse(1.0))(policy, rollout, torch.full((12,), 1e-30)):
        term.loss.backward()
        norms.append(policy.net.shift.grad.norm().item())
    assert all(later > earlier for earlier, later in pairwise(norms))
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize("objective", [PolicyGradient, Denoising])
def test_a_negative_minibatch_is_refused(objective: type) -> None:
    with pytest.raises(ValueError, match="minibatch must not be negative"):
        objective(minibatch=-1)


def plain(now: Gaussian, transition: Transition, advantage: Tensor) -> Tensor:
    """A surrogate of a user's own."""
    return -advantage * now.log_prob(transition.x_next)


def test_a_plain_function_is_enough_for_a_surrogate() -> None:
    policy, rollout = off_policy()
    ours = gradient(PolicyGradient(plain), policy, rollout, ADVANTAGE)
    assert torch.equal(ours, gradient(PolicyGradient(Reinforce()), policy, rollout, ADVANTAGE))
    (term, *_) = PolicyGradient(plain)(policy, rollout, ADVANTAGE)
    assert term.measures.keys() == {"ratio_error"}
