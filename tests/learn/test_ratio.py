"""The ratio before any update is 1: rollout and replay are the same function of the same tensors."""

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, DanceSde, Ddim, FlowPath, FlowSde, Lcm, Path, Policy, Prompt, Sampler, VpPath, noise
from grpaint.core.runtime import Runtime
from grpaint.learn import PolicyGradient, Reinforce, StepKl
from grpaint.rollout import Funnel, Plan, Random, Reference, Rollout, Shared, Whole, act, roll

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a small green cross above a white triangle")]
FLOW = [FlowSde(0.7), DanceSde(0.3), Cps(0.8), Lcm()]
VP = [Ddim(1.0), Cps(0.8), Lcm()]
KERNELS = [("velocity", kernel) for kernel in FLOW] + [("epsilon", kernel) for kernel in VP]
PATHS = [FlowPath(), FlowPath(3), FlowPath(3, "sd3")]
CLOSED_FORM = [(path, kernel) for path in PATHS for kernel in FLOW] + [(VpPath(), kernel) for kernel in VP]
ADVANTAGE = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.3, 0.7, -0.2, 1.1, -2.0])


def scenes(parametrisation: str, guidance: float = 1.0) -> Policy:
    """The built-in network, its zero-initialised layers moved off zero."""
    policy = Scenes(parametrisation, start="random", guidance=guidance).load(Runtime())  # type: ignore[arg-type]
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise(("perturb",), [number], parameter.shape)[0], alpha=0.03)
    return policy


def rolled(policy: Policy, sampler: Sampler, **settings: object) -> Rollout:
    plan = Plan(**{"steps": 5, "sampler": sampler} | settings)  # type: ignore[arg-type]
    return roll(policy, PROMPTS, 3, plan, iteration=0, seed=0, score=lambda images, *_: images.flatten(1).mean(1))


def replayed(policy: Policy, rollout: Rollout) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities with the current weights and gradients on, beside those of the rollout."""
    out = []
    for t in rollout.transitions:
        gaussian, _ = act(policy, rollout.sampler, t.x, t.here, t.there, rollout.cond.rows(t.rows))
        assert gaussian.mean.requires_grad
        assert torch.equal(gaussian.mean, t.mean)
        out.append((gaussian.log_prob(t.x_next), t.logp))
    assert len(out) == 4
    return out


def ratio_errors(objective: PolicyGradient, policy: Policy, rollout: Rollout, advantage: Tensor) -> Tensor:
    terms = list(objective(policy, rollout, advantage))
    assert all(len(term.measures["ratio_error"]) == len(term.measures["clip_fraction"]) for term in terms)
    return torch.cat([term.measures["ratio_error"] for term in terms])


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(("parametrisation", "sampler"), KERNELS, ids=str)
def test_the_ratio_is_exactly_1_at_equal_shapes(parametrisation: str, sampler: Sampler, guidance: float) -> None:
    policy = scenes(parametrisation, guidance)
    rollout = rolled(policy, sampler)
    for now, then in replayed(policy, rollout):
        assert torch.equal(now, then)
        assert then.isfinite().all()
    errors = ratio_errors(PolicyGradient(), policy, rollout, ADVANTAGE)
    assert len(errors) == 36
    assert not errors.any()


@pytest.mark.parametrize(("path", "sampler"), CLOSED_FORM, ids=str)
def test_the_ratio_is_exactly_1_in_closed_form(path: Path, sampler: Sampler) -> None:
    policy = GaussianModel(path=path).load(Runtime())
    for now, then in replayed(policy, rolled(policy, sampler)):
        assert torch.equal(now, then)


@pytest.mark.parametrize("surrogate", [None, Reinforce()], ids=["ppo-clip", "reinforce"])
def test_the_ratio_is_exactly_1_with_a_penalty_and_while_terms_run_backward(surrogate: Reinforce | None) -> None:
    policy = scenes("velocity")
    rollout = rolled(policy, Cps(), start=Shared(), window=Random(2, 2, 2))
    objective = PolicyGradient(penalty=StepKl()) if surrogate is None else PolicyGradient(surrogate, StepKl())
    for term in objective(policy, rollout, ADVANTAGE):
        term.loss.backward()
        assert not term.measures["ratio_error"].any()
        assert not term.measures.get("clip_fraction", torch.zeros(1)).any()
        assert (term.measures["kl"] > 0).all()


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(("parametrisation", "sampler"), KERNELS, ids=str)
def test_other_shapes_leave_no_more_than_rounding_and_it_is_measured(
    parametrisation: str, sampler: Sampler, guidance: float
) -> None:
    policy = scenes(parametrisation, guidance)
    rollout = rolled(policy, sampler)
    for minibatch in (1, 4):
        errors = ratio_errors(PolicyGradient(minibatch=minibatch), policy, rollout, ADVANTAGE)
        assert len(errors) == 36
        assert errors.max() <= 1e-6
    dropped = ADVANTAGE.where(torch.arange(9) < 6, 0)
    assert ratio_errors(PolicyGradient(), policy, rollout, dropped).max() <= 1e-6
    part = torch.tensor([7, 2, 3])
    assert ratio_errors(PolicyGradient(), policy, rollout.rows(part), ADVANTAGE[part]).max() <= 1e-6


def test_pruned_and_late_rows_are_replayed_as_they_were_rolled() -> None:
    policy = GaussianModel().load(Runtime())
    given = [Prompt(p.text, reference=torch.rand(3, 4, 4)) for p in PROMPTS]
    score = {"score": lambda images, *_: images.flatten(1).mean(1)}
    plans = [Plan(5, Cps(), prune=Funnel((2,), (2,))), Plan(5, Cps(), start=Reference(0.5, 0.6))]
    for plan in plans:
        rollout = roll(policy, given, 3, plan, iteration=0, seed=0, **score)
        errors = ratio_errors(PolicyGradient(), policy, rollout, torch.ones(len(rollout.x0)))
        assert len(errors) == sum(len(t.rows) for t in rollout.transitions)
        assert errors.max() <= 1e-6


def test_after_an_update_the_ratio_leaves_1_and_the_measures_say_so() -> None:
    policy = GaussianModel().load(Runtime())
    rollout = rolled(policy, FlowSde(), window=Whole())
    with torch.no_grad():
        next(policy.parameters()).mul_(1.5)
    terms = list(PolicyGradient()(policy, rollout, ADVANTAGE))
    assert [term.step for term in terms] == [0, 1, 2, 3]
    for term, t in zip(terms, rollout.transitions, strict=True):
        now = act(policy, rollout.sampler, t.x, t.here, t.there, rollout.cond)[0].log_prob(t.x_next)
        ratio = (now - t.logp).exp()
        torch.testing.assert_close(term.measures["ratio_error"], (ratio - 1).abs().detach())
        clipped = ((ratio > 1 + 1e-4) & (ADVANTAGE > 0)) | ((ratio < 1 - 1e-4) & (ADVANTAGE < 0))
        assert torch.equal(term.measures["clip_fraction"], clipped.float())
    assert 0 < torch.cat([term.measures["clip_fraction"] for term in terms]).mean() < 1
