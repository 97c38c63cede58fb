"""On Gaussian data every step is affine, so the mean and the spread of what a sampler makes follow exactly.

The chain is propagated in double precision through ``step`` and the closed-form model: no random numbers, no tolerance
for chance. Ode, Ddim, FlowSde and DanceSde approach the data as steps grow; Cps does not (see below).
"""

import math
from itertools import pairwise

import pytest
import torch

from grpaint.backends.gaussian import GaussianCondition, GaussianModel
from grpaint.core import Cps, DanceSde, Ddim, FlowPath, FlowSde, Ode, Path, Prompt, Sampler, VpPath, noise, step
from grpaint.core.runtime import Runtime

MEAN, SPREAD = 0.3, 0.5
COSINE = VpPath(betas="cosine", spacing="trailing", final="one")


def moments(path: Path, sampler: Sampler, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of samples that began exactly on the path."""
    policy = GaussianModel(spread=SPREAD, path=path, sample_shape=(1, 1, 1)).load(Runtime())
    with torch.no_grad():
        policy.net.double().weight.zero_()
        policy.net.shift.fill_(MEAN)
    cond = GaussianCondition(policy.encode([Prompt("")] * 2).embedding.double())
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    grid = path.grid(steps)
    mean, variance = grid[0].alpha * MEAN, (grid[0].alpha * SPREAD) ** 2 + grid[0].sigma ** 2
    with torch.no_grad():
        for here, there in pairwise(grid):
            gaussian = step(sampler, policy.predict(probe, here, cond), here, there)
            at_0, at_1 = gaussian.mean.flatten().tolist()
            mean, variance = at_0 + (at_1 - at_0) * mean, (at_1 - at_0) ** 2 * variance + gaussian.std**2
    return mean, math.sqrt(variance)


EXACT = [
    pytest.param(FlowPath(), Ode(), id="ode"),
    pytest.param(FlowPath(3), Ode(), id="ode-shifted"),
    pytest.param(FlowPath(), DanceSde(0.3), id="dance-sde"),
    pytest.param(FlowPath(3), DanceSde(0.3), id="dance-sde-shifted"),
    pytest.param(FlowPath(3), FlowSde(0.7), id="flow-sde-shifted"),
    pytest.param(FlowPath(), FlowSde(0.7), id="flow-sde"),
    pytest.param(FlowPath(), FlowSde(1.0), id="flow-sde-1"),
    pytest.param(COSINE, Ddim(0), id="ddim-0-cosine"),
    pytest.param(COSINE, Ddim(0.5), id="ddim-half-cosine"),
    pytest.param(COSINE, Ddim(1), id="ddim-1-cosine"),
    pytest.param(VpPath(spacing="trailing", final="one"), Ddim(0), id="ddim-0"),
    pytest.param(VpPath(spacing="trailing", final="one"), Ddim(1), id="ddim-1"),
]


@pytest.mark.parametrize(("path", "sampler"), EXACT)
def test_many_steps_reach_the_data(path: Path, sampler: Sampler) -> None:
    mean, spread = moments(path, sampler, 1000)
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert spread == pytest.approx(SPREAD, rel=0.01)


@pytest.mark.parametrize(("path", "sampler"), EXACT)
def test_the_error_falls_with_the_number_of_steps(path: Path, sampler: Sampler) -> None:
    few, more, many = (abs(moments(path, sampler, steps)[1] - SPREAD) for steps in (10, 40, 1000))
    assert many < more / 3 or many < 1e-3
    assert more < few / 2


@pytest.mark.parametrize(("path", "sampler"), [(FlowPath(), Ode()), (FlowPath(), DanceSde(0.3)), (COSINE, Ddim(1))])
def test_the_error_is_of_first_order(path: Path, sampler: Sampler) -> None:
    errors = [abs(moments(path, sampler, steps)[1] - SPREAD) for steps in (125, 250, 500)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("sampler", [Ode(), Cps(0.8), FlowSde(0.7), DanceSde(0.3)])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_mean_is_exact_at_any_number_of_steps(sampler: Sampler, steps: int) -> None:
    assert moments(FlowPath(3), sampler, steps)[0] == pytest.approx(MEAN, abs=1e-12)


def test_the_public_noise_schedule_stops_short_of_clean_data() -> None:
    """Stable Diffusion's grid ends at abar_0, and its mean there is alpha_0 times that of the data."""
    mean, spread = moments(VpPath(), Ddim(0), 500)
    assert mean == pytest.approx(MEAN * VpPath().at(0).alpha, abs=1e-6)
    assert spread == pytest.approx(SPREAD, rel=0.01)


@pytest.mark.parametrize("eta", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("path", [FlowPath(), FlowPath(3), VpPath(spacing="trailing", final="one")], ids=str)
def test_cps_narrows_the_data_by_a_factor_that_more_steps_do_not_remove(path: Path, eta: float) -> None:
    """In the limit the spread is cos(eta * pi / 4) of the data's: .972, .924, .809, .707 for the etas above.

    A step replaces part of the predicted noise by new noise of the right size, but predicted x0 and eps are posterior
    means and together narrower than the data: a step of length 0 changes the variance by
    -(alpha spread sigma (1 - cos))^2 / (alpha^2 spread^2 + sigma^2), cos = cos(eta pi/2). Since eta does not fall with
    the step length, many steps settle where that loss and the noise balance, at (1 + cos) / 2 of the variance.
    """
    spread = moments(path, Cps(eta), 1000)[1]
    assert spread == pytest.approx(SPREAD * math.cos(eta * math.pi / 4), rel=0.015)
    assert moments(path, Cps(eta), 25)[1] < spread


def test_cps_at_the_usual_settings_keeps_three_quarters_of_the_spread() -> None:
    """Eta .8: .70, .76, .79, .81 of the data's spread at 10, 25, 100, 1000 steps; the Ode's .86, .94, .99, 1.00."""
    table = {10: (0.704, 0.862), 25: (0.757, 0.942), 100: (0.790, 0.985), 1000: (0.805, 0.999)}
    for steps, expected in table.items():
        ours = [moments(FlowPath(), sampler, steps)[1] / SPREAD for sampler in (Cps(0.8), Ode())]
        assert ours == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.1])
def test_a_cps_step_of_length_zero_loses_the_derived_variance(sigma: float) -> None:
    here, cos = FlowPath().at(sigma), math.cos(0.4 * math.pi)
    signal, level = (here.alpha * SPREAD) ** 2, (here.alpha * SPREAD) ** 2 + sigma**2
    gain, std = Cps(0.8)(here, here)
    after = ((signal + gain * sigma) / level) ** 2 * level + std**2
    assert after - level == pytest.approx(-signal * (sigma * (1 - cos)) ** 2 / level, rel=1e-9)


@pytest.mark.parametrize("sampler", [Ode(), FlowSde(0.7), DanceSde(0.3), Cps(0.8)])
def test_drawn_samples_have_the_propagated_moments(sampler: Sampler) -> None:
    """The same chain with random numbers: 40,000 draws, four standard errors."""
    path = FlowPath()
    policy = GaussianModel(spread=SPREAD, path=path, sample_shape=(1, 200, 200)).load(Runtime())
    with torch.no_grad():
        policy.net.weight.zero_()
        policy.net.shift.fill_(MEAN)
        cond, x = policy.encode([Prompt("")]), policy.noise((0, "start"), [0])
        for k, (here, there) in enumerate(pairwise(path.grid(25))):
            fresh = noise((0, k), [0], policy.spec.sample_shape)
            x = step(sampler, policy.predict(x, here, cond), here, there).sample(fresh)
    mean, spread = moments(path, sampler, 25)
    assert x.mean().item() == pytest.approx(mean, abs=4 * spread / 200)
    assert x.std().item() == pytest.approx(spread, rel=4 / math.sqrt(80_000))
