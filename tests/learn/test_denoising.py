"""The supervised loss against its formulas."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianCondition, GaussianModel, GaussianPolicy
from grpaint.backends.scenes import Scenes
from grpaint.core import FlowPath, Ode, Path, Point, Prompt, VpPath, noise, read, uniform
from grpaint.core.prediction import Prediction
from grpaint.core.runtime import Runtime
from grpaint.learn import Denoising
from grpaint.rollout import Rollout

COUNT = 10
PROMPTS = [Prompt(f"prompt {i}") for i in range(COUNT)]
PATHS = [FlowPath(), VpPath(), VpPath(betas="cosine", spacing="trailing", final="one")]


class Outputs:
    """A policy whose network emits what it was given, read as ``kind``."""

    def __init__(self, output: Tensor, kind: str) -> None:
        self.output, self.kind = output, kind

    def predict(self, x: Tensor, here: Point, cond: object, weights: str = "current") -> Prediction:
        return read(self.output, x, here, self.kind)  # type: ignore[arg-type]


def policy(path: Path | None = None) -> GaussianPolicy:
    return GaussianModel(path=path or FlowPath()).load(Runtime())


def batch(iteration: int = 3, seed: int = 5, shape: tuple[int, ...] = (1, 4, 4)) -> Rollout:
    """Clean samples, one a prompt."""
    return Rollout(
        prompts=PROMPTS,
        group=torch.arange(COUNT),
        cond=policy().encode(PROMPTS),
        sampler=Ode(),
        transitions=(),
        x0=noise(("clean",), range(COUNT), shape),
        previews={},
        references=torch.zeros(COUNT, dtype=torch.bool),
        iteration=iteration,
        seed=seed,
    )


def terms_of(objective: Denoising, model: GaussianPolicy, rollout: Rollout) -> list[float]:
    return [term.loss.item() for term in objective(model, rollout, torch.zeros(COUNT))]  # type: ignore[arg-type]


def total(objective: Denoising, model: GaussianPolicy, rollout: Rollout) -> float:
    return sum(terms_of(objective, model, rollout))


def at(path: Path, times: list[float] | list[int]) -> Point:
    """Every row at a time of its own."""
    return path.at(torch.tensor(times).view(-1, 1, 1, 1))


def fields() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(noise((name,), range(COUNT), (1, 4, 4)) for name in ("output", "eps", "clean"))  # type: ignore


FLOW_TIMES = [0.02, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 0.8, 0.95, 0.999]
VP_TIMES = [1, 20, 100, 250, 400, 500, 650, 800, 900, 990]


def test_the_velocity_loss_is_the_error_of_the_networks_output() -> None:
    output, eps, clean = fields()
    ours = Denoising("velocity").loss(Outputs(output, "velocity"), batch(), at(FlowPath(), FLOW_TIMES), eps)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, ((output - (eps - clean)) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [None, 5.0, 0.3])
@pytest.mark.parametrize("path", PATHS[1:], ids=["scaled-linear", "cosine"])
def test_the_epsilon_loss_is_min_snr_weighted(path: Path, gamma: float | None) -> None:
    output, eps, _ = fields()
    here = at(path, VP_TIMES)
    ours = Denoising("epsilon", gamma).loss(Outputs(output, "epsilon"), batch(), here, eps)  # type: ignore[arg-type]
    for row, t in enumerate(VP_TIMES):
        snr = path.abar[t] / (1 - path.abar[t])  # type: ignore[attr-defined]
        weight = min(snr, gamma) / snr if gamma else 1.0
        expected = weight * ((output - eps)[row] ** 2).mean().item()
        assert ours[row].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_v_loss_is_min_snr_weighted(gamma: float | None) -> None:
    output, eps, clean = fields()
    path = VpPath()
    here = at(path, VP_TIMES)
    ours = Denoising("v", gamma).loss(Outputs(output, "v"), batch(), here, eps)  # type: ignore[arg-type]
    for row, t in enumerate(VP_TIMES):
        alpha, sigma = math.sqrt(path.abar[t]), math.sqrt(1 - path.abar[t])
        snr = alpha**2 / sigma**2
        weight = min(snr, gamma) / (snr + 1) if gamma else 1.0
        error = output[row] - (alpha * eps[row] - sigma * clean[row])
        assert ours[row].item() == pytest.approx(weight * (error**2).mean().item(), rel=1e-4)


def test_min_snr_makes_epsilon_and_v_one_loss_at_high_noise() -> None:
    """Where snr is below gamma, both weigh the error of x0 by snr: Hang et al. 2023, section 3.4."""
    output, eps, _ = fields()
    here = at(VpPath(), [700 + 20 * i for i in range(COUNT)])
    model = Outputs(output, "v")
    ours, theirs = (Denoising(target, 5.0).loss(model, batch(), here, eps) for target in ("epsilon", "v"))  # type: ignore
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def by_hand(path: Path, times: Callable[[float], float], target: str) -> float:
    """The whole loss of ``batch()``, row by row."""
    model, rollout = policy(path), batch()
    draws = uniform((5, 3, "denoising"), COUNT)
    eps = noise((5, 3, "denoising"), range(COUNT), (1, 4, 4))
    loss = 0.0
    for row in range(COUNT):
        t = path.times(torch.tensor([times((row + draws[row].item()) / COUNT)])).item()
        here = path.at(t)
        x = here.alpha * rollout.x0[row] + here.sigma * eps[row]
        with torch.no_grad():
            seen = model.predict(x[None], here, rollout.cond.rows(torch.tensor([row])))
        error = seen.eps[0] - eps[row]
        if target == "velocity":
            error = error - (seen.x0[0] - rollout.x0[row])
        loss += (error**2).mean().item() / COUNT
    return loss


@pytest.mark.parametrize(
    ("path", "target"), [(PATHS[0], "velocity"), (PATHS[1], "epsilon"), (PATHS[2], "epsilon")], ids=str
)
def test_times_are_stratified_and_noise_is_keyed(path: Path, target: str) -> None:
    ours = total(Denoising(target), policy(path), batch())  # type: ignore[arg-type]
    assert ours == pytest.approx(by_hand(path, lambda u: u, target), rel=1e-4)


@pytest.mark.parametrize("towards_noise", [0.0, 0.7])
def test_logit_normal_times_are_the_sigmoid_of_a_normal(towards_noise: float) -> None:
    def logit_normal(u: float) -> float:
        z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(u)).item() + towards_noise
        return 1 / (1 + math.exp(-z))

    objective = Denoising(times="logit-normal", towards_noise=towards_noise)
    ours = total(objective, policy(), batch())
    assert ours == pytest.approx(by_hand(FlowPath(), logit_normal, "velocity"), rel=1e-4)


OBJECTIVES = [
    (FlowPath(), Denoising()),
    (FlowPath(), Denoising(times="logit-normal", towards_noise=0.3)),
    (VpPath(), Denoising("epsilon", 5.0)),
    (VpPath(), Denoising("v", 5.0)),
]


@pytest.mark.parametrize(("path", "objective"), OBJECTIVES, ids=str)
@pytest.mark.parametrize("minibatch", [1, 4, 10, 64])
def test_minibatches_add_up_to_the_full_batch(path: Path, objective: Denoising, minibatch: int) -> None:
    model = policy(path)

    def gradient(size: int) -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        terms = list(replace(objective, minibatch=size)(model, batch(), torch.zeros(COUNT)))
        assert [len(term.measures["denoising"]) for term in terms][:1] == [min(size or COUNT, COUNT)]
        for term in terms:
            term.loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for ours, expected in zip(gradient(minibatch), gradient(0), strict=True):
        assert (ours - expected).norm() <= 1e-6 * expected.norm()
    part = replace(objective, minibatch=minibatch)
    assert total(part, model, batch()) == pytest.approx(total(objective, model, batch()), rel=1e-5)


def test_the_loss_of_a_network_does_not_depend_on_minibatches() -> None:
    model = Scenes(start="random").load(Runtime())
    prompts = [Prompt("a red circle")] * COUNT
    rollout = replace(batch(shape=(3, 32, 32)), prompts=prompts, cond=model.encode(prompts))  # type: ignore[arg-type]
    whole, parts = (
        sum(term.loss.item() for term in Denoising(minibatch=size)(model, rollout, torch.zeros(COUNT)))
        for size in (0, 3)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_loss_belongs_to_seed_and_iteration() -> None:
    model, objective = policy(), Denoising()
    first = total(objective, model, batch())
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert total(objective, model, batch()) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert total(objective, model, batch(iteration=4)) != first
    assert total(objective, model, batch(seed=6)) != first


def test_weights_are_the_requested_set() -> None:
    model, objective = policy(), Denoising()
    here, (_, eps, _) = at(FlowPath(), FLOW_TIMES), fields()
    before = objective.loss(model, batch(), here, eps)
    with torch.no_grad():
        model.net.shift.add_(0.5)
    assert torch.equal(objective.loss(model, batch(), here, eps, "reference"), before)
    assert not torch.equal(objective.loss(model, batch(), here, eps), before)


def test_measures_are_the_losses_of_the_rows() -> None:
    (term,) = Denoising()(policy(), batch(), torch.zeros(COUNT))
    assert term.step == -1
    assert not term.measures["denoising"].requires_grad
    assert term.measures["denoising"].mean().item() == pytest.approx(term.loss.item(), rel=1e-6)


def test_the_true_means_have_the_least_loss() -> None:
    """Data drawn from the closed form's own distribution: moving the mean either way makes the loss larger."""
    model = GaussianModel(sample_shape=(1, 32, 32)).load(Runtime())
    cond = GaussianCondition(model.encode(PROMPTS).embedding)
    with torch.no_grad():
        clean = model.net(cond.embedding) + model.spec.spread * noise(("data",), range(COUNT), (1, 32, 32))
    rollout = replace(batch(shape=(1, 32, 32)), x0=clean, cond=cond)

    def moved(by: float) -> float:
        with torch.no_grad():
            model.net.shift.fill_(by)
        return total(Denoising(), model, rollout)

    assert moved(0.0) < min(moved(0.2), moved(-0.2))


@pytest.mark.parametrize("gamma", [5.0, 1.0])
def test_a_flow_velocity_takes_no_snr_weight(gamma: float) -> None:
    with pytest.raises(ValueError, match="snr_gamma needs"):
        Denoising("velocity", gamma)
