"""Forward-process objectives against the published losses, written out in what the network emits."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, FlowPath, Ode, Path, Policy, Prompt, VpPath, noise
from grpaint.core.runtime import Runtime
from grpaint.learn import AdvantageWeightedMatching, DiffusionNft, ElboPolicyGradient
from grpaint.learn.forward import ForwardObjective, self_normalised, stratify
from grpaint.rollout import Closed, Funnel, Plan, Prefix, Rollout, Shared, roll

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a green cross")]
ADVANTAGE = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.3, 0.7, -0.2, 1.1, -2.0, 0.4, 0.9, -0.6])
PLAN = Plan(5, window=Closed(), weights="behaviour")
PATHS = [FlowPath(), VpPath(), VpPath(betas="cosine", spacing="trailing", final="one")]
FORMS = [ElboPolicyGradient(form=form) for form in ("epg", "pepg", "par")]  # type: ignore[arg-type]
EVERY = [
    DiffusionNft(),
    DiffusionNft(beta=0.1, kl_reference=0.0),
    *FORMS,
    AdvantageWeightedMatching(),
    AdvantageWeightedMatching(weight="t", target="v"),
]


def rolled(path: Path) -> tuple[GaussianPolicy, Rollout]:
    """A policy whose behaviour weights are its current ones, which are not the reference's any more."""
    policy = GaussianModel(path=path).load(Runtime())
    move(policy, 0.02, "trained")
    policy.blend("behaviour", 0.0)
    return policy, roll(policy, PROMPTS, 4, PLAN, iteration=3, seed=5)


def off_policy(path: Path) -> tuple[GaussianPolicy, Rollout]:
    policy, rollout = rolled(path)
    move(policy, 0.1, "moved")
    return policy, rollout


def move(policy: Policy, size: float, key: str) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(noise((key,), [number], parameter.shape)[0], alpha=size)


def gradient(objective: ForwardObjective, policy: Policy, rollout: Rollout, advantage: Tensor = ADVANTAGE) -> Tensor:
    for parameter in policy.parameters():
        parameter.grad = None
    for term in objective(policy, rollout, advantage):
        term.loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def total(objective: ForwardObjective, policy: Policy, rollout: Rollout, advantage: Tensor = ADVANTAGE) -> float:
    return sum(term.loss.item() for term in objective(policy, rollout, advantage))


def outputs(policy: Policy, rollout: Rollout, draws: int) -> list[tuple]:
    """(row, alpha, sigma, x0, eps, x, network's output by weights) of every row and draw, the output as trained."""
    seen = []
    times = [policy.path.times(draw) for draw in stratify((5, 3, "forward"), 12, draws)]
    for draw, row in product(range(draws), range(12)):
        here = policy.path.at(times[draw][row].item())
        x0, eps = rollout.x0[row], noise((5, 3, "forward", draw), [row], rollout.x0.shape[1:])[0]
        x, emitted = here.alpha * x0 + here.sigma * eps, {}
        for weights in ("current", "behaviour", "reference"):
            with torch.no_grad():
                belief = policy.predict(x[None], here, rollout.cond.rows(torch.tensor([row])), weights)  # type: ignore
            flow = isinstance(policy.path, FlowPath)
            emitted[weights] = (belief.eps - belief.x0 if flow else belief.eps)[0].double()
        seen.append((row, here.alpha, here.sigma, x0.double(), eps.double(), x.double(), emitted))
    return seen


def clean(path: Path, output: Tensor, alpha: float, sigma: float, x: Tensor) -> Tensor:
    """The clean sample that a network's output means: x - t v, or (x - sigma eps) / alpha."""
    return x - sigma * output if isinstance(path, FlowPath) else (x - sigma * output) / alpha


def velocity(path: Path, output: Tensor, alpha: float, sigma: float, x: Tensor) -> Tensor:
    """Eps - x0 of what the network says."""
    return output if isinstance(path, FlowPath) else output - clean(path, output, alpha, sigma, x)


def square(values: Tensor) -> float:
    return (values**2).mean().item()


def normalised(estimate: Tensor, x0: Tensor) -> float:
    return square(estimate - x0) / (estimate - x0).abs().mean().item()


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("path", PATHS, ids=["flow", "vp", "cosine"])
def test_diffusion_nft_is_its_published_loss(path: Path, beta: float) -> None:
    policy, rollout = off_policy(path)
    expected = 0.0
    for row, alpha, sigma, x0, _, x, out in outputs(policy, rollout, 3):
        now, old = out["current"], out["behaviour"]
        r = min(max(3 * ADVANTAGE[row].item(), -5), 5) / 10 + 0.5
        plus, minus = beta * now + (1 - beta) * old, (1 + beta) * old - beta * now
        parts = [normalised(clean(path, output, alpha, sigma, x), x0) for output in (plus, minus)]
        kl = square(velocity(path, now, alpha, sigma, x) - velocity(path, out["reference"], alpha, sigma, x))
        expected += (5 / beta * (r * parts[0] + (1 - r) * parts[1]) + 1e-2 * kl) / 36
    ours = total(DiffusionNft(beta=beta, kl_reference=1e-2, draws=3), policy, rollout, 3 * ADVANTAGE)
    assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["epg", "pepg", "par"])
@pytest.mark.parametrize("path", PATHS, ids=["flow", "vp", "cosine"])
def test_elbo_policy_gradients_are_their_published_losses(path: Path, form: str) -> None:
    policy, rollout = off_policy(path)
    expected = 0.0
    for row, alpha, sigma, x0, _, x, out in outputs(policy, rollout, 2):
        elbo, old = (-normalised(clean(path, out[w], alpha, sigma, x), x0) for w in ("current", "behaviour"))
        gain, gap = ADVANTAGE[row].item(), elbo - old
        loss = {"epg": -gain * elbo, "pepg": -(gain - gap) * elbo, "par": (gain - gap) ** 2 / 2}[form]
        expected += math.exp(gap) * loss / 24
    ours = ElboPolicyGradient(form=form, kl_reference=0.0)  # type: ignore[arg-type]
    assert total(ours, policy, rollout) == pytest.approx(expected, rel=1e-4)


H: dict[str, Callable[[float, float], float]] = {
    "uniform": lambda u, t: u,
    "t": lambda u, t: t * u,
    "t2": lambda u, t: t * t * u,
    "ghuber": lambda u, t: t / 0.25 * ((u + 1e-10) ** 0.25 - 1e-10**0.25),
}


@pytest.mark.parametrize("weight", H)
@pytest.mark.parametrize(("path", "target"), [(PATHS[0], "velocity"), (PATHS[1], "epsilon")], ids=["flow", "vp"])
def test_awm_is_its_published_loss(path: Path, target: str, weight: str) -> None:
    policy, rollout = off_policy(path)
    expected = 0.0
    for row, alpha, sigma, x0, eps, x, out in outputs(policy, rollout, 2):
        truth = eps - x0 if target == "velocity" else eps
        now, old = (-H[weight](square(out[w] - truth), sigma / (alpha + sigma)) for w in ("current", "behaviour"))
        gain, ratio = min(max(3 * ADVANTAGE[row].item(), -5), 5) / 5, math.exp(now - old)
        v, v_ref = (velocity(path, out[w], alpha, sigma, x) for w in ("current", "reference"))
        loss = max(-gain * ratio, -gain * min(max(ratio, 0.999), 1.002))
        drift = square(out["current"] - out["behaviour"])
        expected += (loss + 0.5 * drift + 0.1 * square(v - v_ref)) / 24
    ours = AdvantageWeightedMatching(
        target=target,
        weight=weight,
        low=1e-3,
        high=2e-3,
        kl_behaviour=0.5,
        kl_reference=0.1,  # type: ignore[arg-type]
    )
    assert total(ours, policy, rollout, 3 * ADVANTAGE) == pytest.approx(expected, rel=1e-4)


def slopes(policy: GaussianPolicy, rollout: Rollout, flow: bool) -> tuple[Tensor, Tensor]:
    """Gradients by the mean's shift, before an update, of sum A E / 24 and of sum A l / (5 * 24), from the closed form.

    The posterior mean moves by k = sigma^2 / (alpha^2 spread^2 + sigma^2) for a shift of 1.
    """
    variance = policy.spec.spread**2
    elbo, matching = torch.zeros(1, 4, 4).double(), torch.zeros(1, 4, 4).double()
    for row, alpha, sigma, x0, _, x, out in outputs(policy, rollout, 2):
        k = sigma**2 / (alpha**2 * variance + sigma**2)
        error = clean(policy.path, out["current"], alpha, sigma, x) - x0
        gain = ADVANTAGE[row].item()
        elbo -= gain * 2 * error * k / 16 / error.abs().mean() / 24
        u = square(error) / sigma**2
        matching -= gain / 5 * sigma * u**-0.75 * 2 * error * k / sigma**2 / 16 / 24
    return elbo.flatten(), matching.flatten() if flow else torch.zeros(0)


@pytest.mark.parametrize("path", PATHS[:2], ids=["flow", "vp"])
def test_before_an_update_gradients_are_those_of_the_closed_form(path: Path) -> None:
    policy, rollout = rolled(path)
    elbo, matching = slopes(policy, rollout, path == PATHS[0])
    for objective in (*FORMS, DiffusionNft(beta=1.0), DiffusionNft(beta=0.1)):
        ours = gradient(replace(objective, kl_reference=0.0), policy, rollout)[-16:].double()
        assert (ours + elbo).norm() <= 1e-5 * elbo.norm(), objective
    if len(matching):
        ours = gradient(AdvantageWeightedMatching(kl_reference=0.0), policy, rollout)[-16:].double()
        assert (ours + matching).norm() <= 1e-5 * matching.norm()


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_before_an_update_current_and_behaviour_agree_exactly(objective: ForwardObjective) -> None:
    policy = Scenes(start="random").load(Runtime())
    policy.blend("behaviour", 0.0)
    rollout = roll(policy, PROMPTS, 4, PLAN, iteration=3, seed=5)
    for term in objective(policy, rollout, ADVANTAGE):
        term.loss.backward()
        for name in {"behind", "log_ratio", "clip_fraction", "kl"} & term.measures.keys():
            assert not term.measures[name].any(), name


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_samples_of_the_current_weights_cost_a_forward_less_and_give_the_same_gradient(
    objective: ForwardObjective,
) -> None:
    policy = Scenes(start="random").load(Runtime())
    policy.blend("behaviour", 0.0)
    move(policy, 0.02, "trained")
    policy.blend("behaviour", 0.0)
    gradients = []
    for weights in ("behaviour", "current"):
        rollout = roll(policy, PROMPTS, 4, replace(PLAN, weights=weights), iteration=3, seed=5)  # type: ignore[arg-type]
        assert rollout.weights == rollout.rows(torch.tensor([3, 1])).weights == weights
        policy.meter.counts.clear()
        gradients.append(gradient(objective, policy, rollout))
        assert policy.meter.counts["training"] == 12 * objective.evaluations(weights)  # type: ignore[arg-type]
    assert objective.evaluations("behaviour") - objective.evaluations("current") == objective.draws
    assert gradients[0].any()
    assert torch.equal(*gradients)


@pytest.mark.parametrize("objective", [DiffusionNft(draws=3), AdvantageWeightedMatching(draws=3)], ids=str)
def test_a_group_can_share_its_noise(objective: ForwardObjective) -> None:
    policy, rollout = off_policy(PATHS[0])
    shared, seen = replace(objective, noise="group"), []
    noise_of = policy.noise
    policy.noise = lambda key, rows: seen.append((key, noise_of(key, rows))) or seen[-1][1]  # type: ignore[method-assign]
    whole = gradient(shared, policy, rollout)
    assert len(seen) == 3
    for key, eps in seen:
        assert torch.equal(eps, noise(key, rollout.group, rollout.x0.shape[1:]))
        assert torch.equal(eps[:4], eps[:1].expand(4, -1, -1, -1))
        assert not torch.equal(eps[3], eps[4])
    assert not torch.equal(whole, gradient(objective, policy, rollout))
    part = gradient(replace(shared, minibatch=5), policy, rollout)  # a part that cuts through groups
    assert (part - whole).norm() <= 1e-6 * whole.norm()


@pytest.mark.parametrize("objective", EVERY, ids=str)
@pytest.mark.parametrize("minibatch", [1, 5, 12, 64])
def test_minibatches_change_nothing(objective: ForwardObjective, minibatch: int) -> None:
    policy, rollout = off_policy(PATHS[0])
    expected = gradient(objective, policy, rollout)
    part = replace(objective, minibatch=minibatch)
    assert (gradient(part, policy, rollout) - expected).norm() <= 1e-6 * expected.norm()
    assert total(part, policy, rollout) == pytest.approx(total(objective, policy, rollout), rel=1e-5)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_rows_without_advantage_ask_nothing_of_the_model_but_are_counted(objective: ForwardObjective) -> None:
    policy, rollout = off_policy(PATHS[0])
    policy.meter.counts.clear()
    half = ADVANTAGE * torch.tensor([1.0, 1.0, 0.0, 1.0] * 3)
    terms = list(objective(policy, rollout, half))
    assert all(len(values) == 9 for term in terms for values in term.measures.values())
    assert policy.meter.counts["training"] == 9 * objective.evaluations("behaviour")
    rows = [term.loss.item() for term in replace(objective, minibatch=1)(policy, rollout, ADVANTAGE)]
    alone = sum(loss for number, loss in enumerate(rows) if number % 12 % 4 != 2)
    assert sum(term.loss.item() for term in terms) == pytest.approx(alone, rel=1e-4)
    assert list(objective(policy, rollout, torch.zeros(12))) == []


def test_times_are_stratified_over_rows_and_over_the_draws_of_a_row() -> None:
    draws = torch.stack(stratify(("key",), 60, 4))
    for times in draws:
        assert sorted((times * 60 + 1e-3).floor().int().tolist()) == list(range(60))
    assert draws[0].argsort().tolist() != list(range(60))
    assert (draws * 4).floor().sort(0).values.int().T.tolist() == [[0, 1, 2, 3]] * 60
    assert torch.equal(draws, torch.stack(stratify(("key",), 60, 4)))
    assert not torch.equal(draws, torch.stack(stratify(("other",), 60, 4)))


@pytest.mark.parametrize("towards_noise", [0.0, 0.7])
def test_times_may_be_those_of_a_logit_normal(towards_noise: float) -> None:
    policy, rollout = off_policy(FlowPath())
    times: list[Tensor] = []
    predict = policy.predict
    policy.predict = lambda x, here, *rest: times.append(here.t.flatten()) or predict(x, here, *rest)  # type: ignore
    objective = AdvantageWeightedMatching(
        draws=200, times="logit-normal", towards_noise=towards_noise, kl_reference=0.0, minibatch=12
    )
    list(objective(policy, rollout, ADVANTAGE))
    logits = torch.cat(times[::2]).double().logit()  # each other call is that of the behaviour weights
    assert len(logits) == 2400
    assert logits.mean().item() == pytest.approx(towards_noise, abs=0.01)
    assert logits.std().item() == pytest.approx(1, abs=0.01)


def test_a_network_that_is_right_to_the_last_digit_gives_no_nan() -> None:
    error = torch.zeros(3, 1, 4, 4, requires_grad=True)
    loss = self_normalised(error)
    loss.sum().backward()
    assert not loss.any()
    assert not error.grad.any()


@pytest.mark.parametrize("objective", [DiffusionNft(), ElboPolicyGradient(), AdvantageWeightedMatching()], ids=str)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"window": Prefix(2), "sampler": Cps()}, r'plan\.window: .*kind = "closed"'),
        ({"start": Shared()}, r'plan\.start: .*kind = "independent"'),
        ({"weights": "reference"}, r'plan\.weights = "reference": .*weights = "current"'),
    ],
    ids=["window", "start", "weights"],
)
def test_an_impossible_rollout_is_refused(objective: ForwardObjective, change: dict, reason: str) -> None:
    objective.check(replace(PLAN, prune=Funnel((2,), (2,))))
    objective.check(replace(PLAN, weights="current"))
    with pytest.raises(ValueError, match=reason):
        objective.check(replace(PLAN, **change))


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (DiffusionNft, {"beta": 0.0}, "beta must be positive"),
        (DiffusionNft, {"clip": -1.0}, "clip must be positive"),
        (ElboPolicyGradient, {"draws": 0}, "draws must be at least 1"),
        (ElboPolicyGradient, {"minibatch": -1}, "minibatch must not be negative"),
        (ElboPolicyGradient, {"kl_reference": -1.0}, "kl_reference must not be negative"),
        (AdvantageWeightedMatching, {"kl_behaviour": -1.0}, "kl_behaviour must not be negative"),
        (AdvantageWeightedMatching, {"low": 0.0}, "low must be positive"),
    ],
)
def test_impossible_values_are_refused(make: type, settings: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(**settings)


def test_the_plan_of_these_tests_is_an_ode() -> None:
    assert isinstance(PLAN.outside, Ode)
    assert not rolled(FlowPath())[1].transitions
