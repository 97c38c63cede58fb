"""The closed-form model behaves as a policy must, and its posterior is Bayes' rule."""

import pytest
import torch

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy
from grpaint.core import FlowPath, Path, Point, Prompt, VpPath
from grpaint.core.runtime import Runtime

PROMPTS = [Prompt("a red circle"), Prompt("a blue cross"), Prompt("a red circle")]
PATHS = [FlowPath(), FlowPath(3, "sd3"), VpPath(), VpPath(betas="cosine", spacing="trailing", final="one")]


def model(path: Path | None = None, **settings: object) -> GaussianPolicy:
    return GaussianModel(path=path or FlowPath(), **settings).load(Runtime())


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_prediction_is_the_conditional_mean_of_a_joint_normal(path: Path) -> None:
    policy, v = model(path, spread=0.6), 0.36
    cond = policy.encode(PROMPTS)
    x, mean = policy.noise((0,), range(3)).double(), policy.net(cond.embedding).detach().double()
    for here in path.grid(10):
        _, a, s = here
        centred = x - a * mean
        x0, eps = policy.predict(x, here, cond)
        torch.testing.assert_close(x0, mean + a * v / (a * a * v + s * s) * centred)  # cov(x0, x) / var(x)
        torch.testing.assert_close(eps, s / (a * a * v + s * s) * centred)
        torch.testing.assert_close(a * x0 + s * eps, x)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_no_other_affine_denoiser_errs_less_on_data(path: Path) -> None:
    policy = model(path, sample_shape=(1, 128, 128))
    cond = policy.encode(PROMPTS[:1])
    with torch.no_grad():
        mean, here = policy.net(cond.embedding), path.grid(10)[6]
        clean = mean + policy.spec.spread * policy.noise((1,), [0])
        x = here.alpha * clean + here.sigma * policy.noise((2,), [0])
        guess = policy.predict(x, here, cond).x0
    error = (guess - clean).square().mean()
    for factor in (0.8, 1.2):
        assert (mean + factor * (guess - mean) - clean).square().mean() > error
        assert (guess + (factor - 1) - clean).square().mean() > error


def test_equal_prompts_have_equal_conditions_and_others_do_not() -> None:
    cond = model().encode(PROMPTS)
    assert len(cond) == 3
    assert torch.equal(cond.embedding[0], cond.embedding[2])
    assert not torch.allclose(cond.embedding[0], cond.embedding[1])
    assert torch.equal(cond.rows(torch.tensor([1, 1, 0])).embedding, cond.embedding[[1, 1, 0]])


def test_a_row_is_predicted_alike_in_every_batch_and_at_its_own_point() -> None:
    policy = model()
    cond, x = policy.encode(PROMPTS), policy.noise((0,), range(3))
    t = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1)
    together = policy.predict(x, policy.path.at(t), cond)
    for i in range(3):
        alone = policy.predict(x[i : i + 1], policy.path.at(t[i].item()), cond.rows(torch.tensor([i])))
        torch.testing.assert_close(alone.x0, together.x0[i : i + 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_survive_encoding(channels: int) -> None:
    policy = model(sample_shape=(channels, 5, 6))
    images = torch.rand(2, channels, 5, 6, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    latents = policy.encode_images(images)
    assert latents.shape == (2, channels, 5, 6)
    torch.testing.assert_close(policy.decode(latents), images)
    assert policy.decode(9 * latents).aminmax() == (0, 1)


def test_the_gradient_pulls_the_mean_towards_the_reward() -> None:
    policy = model(sample_shape=(1, 2, 2))
    cond, x = policy.encode(PROMPTS), policy.noise((0,), range(3))
    optimizer = torch.optim.SGD(policy.parameters(), 0.2)
    here, target = policy.path.at(1.0), 0.7
    for _ in range(400):
        optimizer.zero_grad()
        (policy.predict(x, here, cond).x0 - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(policy.net(cond.embedding), torch.full((3, 1, 2, 2), target), atol=1e-3, rtol=0)


def test_the_reference_stays_while_the_current_weights_move() -> None:
    policy = model()
    cond, x, here = policy.encode(PROMPTS), policy.noise((0,), range(3)), policy.path.at(0.7)
    with torch.no_grad():
        before = policy.predict(x, here, cond).x0
        for parameter in policy.parameters():
            parameter.add_(1)
        moved = policy.predict(x, here, cond).x0
        assert not torch.allclose(moved, before)
        assert torch.equal(policy.predict(x, here, cond, "reference").x0, before)
        policy.blend("average", 0.5)
        torch.testing.assert_close(policy.predict(x, here, cond, "average").x0, (before + moved) / 2)


def test_evaluations_are_counted() -> None:
    policy = model()
    cond, x = policy.encode(PROMPTS), policy.noise((0,), range(3))
    policy.predict(x, Point(0.5, 0.5, 0.5), cond)
    assert policy.meter.counts == {"training": 9}


def test_loading_twice_gives_the_same_model_and_touches_no_global_state() -> None:
    state = torch.random.get_rng_state()
    first, second, other = model(), model(), model(init_seed=1)
    assert torch.equal(first.net.weight, second.net.weight)
    assert not torch.equal(first.net.weight, other.net.weight)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "settings", [{"spread": 0.0}, {"spread": float("inf")}, {"sample_shape": (2, 4, 4)}, {"width": 0}], ids=str
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GaussianModel(**settings)
