"""Every sampler equals the published step, written out here from its paper and its public code."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_flow_match_lcm, scheduling_lcm, scheduling_tcd
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpaint.core import (
    Annealed,
    Cps,
    DanceSde,
    Ddim,
    FlowPath,
    FlowSde,
    Gaussian,
    Lcm,
    Ode,
    Path,
    Point,
    Sampler,
    VpPath,
    read,
    step,
)

SD3 = FlowPath(3, "sd3").grid(10)
MIX = FlowPath(3).grid(25)
DANCE = FlowPath(3).grid(16)
FLOWS = {"plain": FlowPath().grid(10), "sd3": SD3, "mixgrpo": MIX, "few": FlowPath().grid(2), "one": FlowPath().grid(1)}
STEPS = [pytest.param(grid, k, id=f"{name}-{k}") for name, grid in FLOWS.items() for k in range(len(grid) - 1)]


def fields(*names: str, shape: tuple[int, ...] = (3, 2, 5)) -> tuple[Tensor, ...]:
    """Unrelated random latents in double precision."""
    generator = torch.Generator().manual_seed(sum(map(ord, "".join(names))))
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in names)


def stds(sampler: Sampler, grid: tuple[Point, ...]) -> list[float]:
    return [sampler(here, there)[1] for here, there in pairwise(grid)]


def same(ours: Gaussian, mean: Tensor, std: float) -> None:
    torch.testing.assert_close(ours.mean, mean, rtol=1e-11, atol=1e-11)
    assert ours.std == pytest.approx(std, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.5])
@pytest.mark.parametrize(("grid", "k"), STEPS)
def test_flow_sde_is_the_step_of_flow_grpo(grid: tuple[Point, ...], k: int, eta: float) -> None:
    x, v = fields("x", "velocity")
    sigmas = [point.sigma for point in grid]
    s, dt = sigmas[k], sigmas[k + 1] - sigmas[k]
    g = eta * math.sqrt(s / (1 - (sigmas[1] if s == 1 else s)))
    mean = x * (1 + g**2 * dt / (2 * s)) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt
    same(step(FlowSde(eta), read(v, x, grid[k], "velocity"), grid[k], grid[k + 1]), mean, g * math.sqrt(-dt))


@pytest.mark.parametrize("eta", [0.25, 0.3])
@pytest.mark.parametrize(("grid", "k"), STEPS)
def test_dance_sde_is_the_step_of_dancegrpo(grid: tuple[Point, ...], k: int, eta: float) -> None:
    x, v = fields("x", "velocity")
    s, dt = grid[k].sigma, grid[k + 1].sigma - grid[k].sigma
    clean = x - s * v
    score = -(x - (1 - s) * clean) / s**2
    mean = x + dt * (v - 0.5 * eta**2 * score)
    same(step(DanceSde(eta), read(v, x, grid[k], "velocity"), grid[k], grid[k + 1]), mean, eta * math.sqrt(-dt))


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("grid", "k"), STEPS)
def test_cps_is_the_step_of_flow_cps(grid: tuple[Point, ...], k: int, eta: float) -> None:
    x, v = fields("x", "velocity")
    s, after = grid[k].sigma, grid[k + 1].sigma
    kappa = after * math.sin(eta * math.pi / 2)
    mean = (1 - after) * (x - s * v) + math.sqrt(max(after**2 - kappa**2, 0)) * (x + (1 - s) * v)
    ours = step(Cps(eta), read(v, x, grid[k], "velocity"), grid[k], grid[k + 1])
    torch.testing.assert_close(ours.mean, mean, rtol=1e-7, atol=1e-7)  # sqrt(s'^2 - kappa^2) cancels at eta = 1
    assert ours.std == pytest.approx(kappa, rel=1e-12)


@pytest.mark.parametrize(("grid", "k"), STEPS)
def test_ode_is_eulers_step(grid: tuple[Point, ...], k: int) -> None:
    x, v = fields("x", "velocity")
    mean = x + (grid[k + 1].sigma - grid[k].sigma) * v
    same(step(Ode(), read(v, x, grid[k], "velocity"), grid[k], grid[k + 1]), mean, 0.0)


def _abar() -> list[float]:
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return (1 - roots**2).cumprod(0).tolist()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_step_of_ddpo(eta: float) -> None:
    x, eps = fields("x", "epsilon")
    abar, grid = _abar(), VpPath().grid(50)
    for here, there in pairwise(grid):
        now, after = abar[here.t], abar[min(max(here.t - 20, 0), 999)]
        clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
        mean = math.sqrt(after) * clean + math.sqrt(1 - after - variance) * eps
        ours = step(Ddim(eta), read(eps, x, here, "epsilon"), here, there)
        torch.testing.assert_close(ours.mean, mean, rtol=1e-9, atol=1e-9)
        assert ours.std == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_the_step_of_diffusers(kind: str, eta: float) -> None:
    output, x, z = fields("output", "x", "z")
    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[kind]
    public = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    public.set_timesteps(50)
    for here, there in pairwise(VpPath().grid(50)):
        theirs = public.step(output, here.t, x, eta=eta, variance_noise=z).prev_sample
        ours = step(Ddim(eta), read(output, x, here, kind), here, there).sample(z)
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)  # their table is in single precision


def test_ode_is_the_step_of_diffusers() -> None:
    x, v = (part.float() for part in fields("x", "velocity"))
    public = FlowMatchEulerDiscreteScheduler(shift=3)
    public.set_timesteps(10)
    for timestep, (here, there) in zip(public.timesteps, pairwise(SD3), strict=True):
        theirs = public.step(v, timestep, x).prev_sample
        torch.testing.assert_close(step(Ode(), read(v, x, here, "velocity"), here, there).mean, theirs)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-6), (4, 1e-6), (8, 1e-6), (50, 2e-5)])
def test_lcm_is_the_step_of_diffusers(monkeypatch: pytest.MonkeyPatch, kind: str, steps: int, tolerance: float) -> None:
    """But for the scalings of its boundary condition, which weigh at most 1.3e-7 in eight steps and 7e-6 in fifty."""
    output, x, z = fields("output", "x", "z")
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: z)
    public = LCMScheduler(prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[kind])
    public.alphas_cumprod = torch.tensor(_abar(), dtype=torch.float64)  # theirs are in single precision
    public.set_timesteps(steps)
    grid = VpPath(spacing="distilled", final="one").grid(steps)
    for timestep, (here, there) in zip(public.timesteps, pairwise(grid), strict=True):
        theirs = public.step(output, timestep, x).prev_sample
        ours = step(Lcm(), read(output, x, here, kind), here, there).sample(z)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lcm_is_the_step_of_diffusers_on_flows(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    x, v, z = (part.float() for part in fields("x", "velocity", "z"))
    monkeypatch.setattr(scheduling_flow_match_lcm, "randn_tensor", lambda *_, **__: z)
    public = FlowMatchLCMScheduler(shift=3)
    public.set_timesteps(steps)
    for timestep, (here, there) in zip(public.timesteps, pairwise(FlowPath(3, "sd3").grid(steps)), strict=True):
        theirs = public.step(v, timestep, x).prev_sample
        torch.testing.assert_close(step(Lcm(), read(v, x, here, "velocity"), here, there).sample(z), theirs)


@pytest.mark.parametrize(("path", "kind"), [(FlowPath(3), "velocity"), (VpPath(), "epsilon"), (VpPath(), "v")])
def test_the_density_of_lcm_is_that_of_a_noised_clean_sample(path: Path, kind: str) -> None:
    """Its mean and the divergence of two policies follow from their clean samples alone."""
    x, *outputs, action = fields("x", "one", "other", "action")
    for here, there in pairwise(path.grid(4)[:-1]):
        clean, reference = (read(output, x, here, kind).x0 for output in outputs)
        one, other = (step(Lcm(), read(output, x, here, kind), here, there) for output in outputs)
        normals = [torch.distributions.Normal(there.alpha * x0, there.sigma) for x0 in (clean, reference)]
        torch.testing.assert_close(one.log_prob(action), normals[0].log_prob(action).flatten(1).mean(1))
        torch.testing.assert_close(one.kl(other), torch.distributions.kl_divergence(*normals).flatten(1).mean(1))
        snr = (there.alpha / there.sigma) ** 2
        torch.testing.assert_close(one.kl(other), snr / 2 * ((clean - reference) ** 2).flatten(1).mean(1))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_a_step_of_tcd_is_one_of_cps(monkeypatch: pytest.MonkeyPatch, gamma: float) -> None:
    """Of another eta at each step: .72, .58, .48 with the usual gamma .3; with gamma 1 within .03 of 1."""
    output, x, z = fields("output", "x", "z")
    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda *_, **__: z)
    public = TCDScheduler()
    public.alphas_cumprod = torch.tensor(_abar(), dtype=torch.float64)
    public.set_timesteps(4)
    grid = VpPath(spacing="distilled").grid(4)
    for timestep, (here, there) in zip(public.timesteps[:-1], pairwise(grid[:-1]), strict=True):
        theirs = public.step(output, timestep, x, eta=gamma).prev_sample
        third = VpPath().at(int((1 - gamma) * there.t))
        std = math.sqrt(max(1 - (there.alpha / third.alpha) ** 2, 0))
        eta = 2 / math.pi * math.asin(std / there.sigma)
        assert {0.0: eta == 0, 0.3: 0.47 < eta < 0.73, 1.0: eta > 0.97}[gamma]
        ours = step(Cps(eta), read(output, x, here, "epsilon"), here, there).sample(z)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [1, 2, 10, 500, 999])
def test_ddim_with_eta_1_is_the_ancestral_step_of_ddpm(t: int) -> None:
    x, eps = fields("x", "epsilon")
    abar, path = _abar(), VpPath()
    alpha, beta = abar[t] / abar[t - 1], 1 - abar[t] / abar[t - 1]
    mean = (x - beta / math.sqrt(1 - abar[t]) * eps) / math.sqrt(alpha)  # Ho et al. 2020, eq. 11
    std = math.sqrt(beta * (1 - abar[t - 1]) / (1 - abar[t]))
    here, there = path.at(t), path.at(t - 1)
    ours = step(Ddim(1), read(eps, x, here, "epsilon"), here, there)
    torch.testing.assert_close(ours.mean, mean, rtol=1e-8, atol=1e-8)
    assert ours.std == pytest.approx(std, rel=1e-8)


def test_flow_sde_has_the_published_stds_on_sd3() -> None:
    table = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.0063]
    assert stds(FlowSde(0.7), SD3) == pytest.approx(table, abs=5e-4)
    assert stds(FlowSde(0.7), SD3)[-1] == pytest.approx(0.0063, abs=5e-5)
    g = stds(FlowSde(0.7), SD3)[0] / math.sqrt(1 - SD3[1].sigma)
    assert g == pytest.approx(3.506, abs=5e-4)


def test_flow_sde_has_the_published_stds_on_mixgrpo() -> None:
    ours = stds(FlowSde(0.7), MIX)
    assert ours[:10] == pytest.approx([0.7, 0.7145, 0.509, 0.418, 0.365, 0.328, 0.301, 0.281, 0.264, 0.250], abs=6e-4)
    assert ours[-2:] == pytest.approx([0.111, 0.0825], abs=6e-4)


def test_dance_sde_has_the_published_stds() -> None:
    ours = stds(DanceSde(0.3), DANCE)
    assert (ours[0], ours[-1]) == pytest.approx((0.044, 0.123), abs=6e-4)
    assert ours == sorted(ours)


def test_ddim_has_the_published_stds_of_ddpo() -> None:
    grid = VpPath().grid(50)
    ours = dict(zip([point.t for point in grid], stds(Ddim(1), grid), strict=False))
    assert [ours[t] for t in (981, 41, 21, 1)] == pytest.approx([0.4545, 0.0999, 0.0395, 0.0206], abs=5e-5)


def test_cps_explores_almost_nothing_at_step_8_of_sd3() -> None:
    assert stds(Cps(0.8), SD3)[8] == pytest.approx(0.0085, abs=5e-5)


def noise_ratios(grid: tuple[Point, ...]) -> list[float]:
    """Noise that a Flow-SDE step leaves in the latent, over what its level asks for; the last level asks for none."""
    return [math.hypot(*FlowSde(0.7)(here, there)) / there.sigma for here, there in pairwise(grid[:-1])]


def test_flow_sde_carries_more_noise_than_its_level_asks_for() -> None:
    linear = noise_ratios(FlowPath(3).grid(10))
    assert linear[:3] == pytest.approx([1.04, 1.06, 1.02], abs=6e-3)
    assert linear[7:] == pytest.approx([1.07, 1.24], abs=6e-3)
    assert FlowSde(0.7)(*FlowPath(3).grid(10)[-2:])[0] < 0


def test_flow_sde_leaves_27_times_the_noise_before_the_last_step_of_sd3() -> None:
    """Its grid falls from .278 to .009 there, while the std is .225 and the gain below zero."""
    ratios = noise_ratios(SD3)
    assert max(ratios[:7]) < 1.07
    assert ratios[7:] == pytest.approx([1.228, 26.9], rel=1e-3)


@pytest.mark.parametrize("grid", FLOWS.values(), ids=FLOWS.keys())
@pytest.mark.parametrize("eta", [0.3, 0.7, 0.9])
def test_the_first_flow_sde_step_has_std_eta(grid: tuple[Point, ...], eta: float) -> None:
    x, v = fields("x", "velocity")
    ours = step(FlowSde(eta), read(v, x, grid[0], "velocity"), grid[0], grid[1])
    assert ours.std == pytest.approx(eta, rel=1e-12)
    torch.testing.assert_close(ours.mean, (1 - eta**2 / 2) * x + (grid[1].sigma - 1) * v)


@given(s=st.floats(0.01, 0.999), share=st.floats(0, 0.999), eta=st.floats(0, 1.5))
def test_flow_sde_scales_the_velocity_by_a_constant(s: float, share: float, eta: float) -> None:
    here, there = FlowPath().at(s), FlowPath().at(s * share)
    h = s - there.sigma
    x, v = fields("x", "velocity")
    ours = step(FlowSde(eta), read(v, x, here, "velocity"), here, there)
    mean = x * (1 - eta**2 * h / (2 * (1 - s))) - (1 + eta**2 / 2) * h * v
    torch.testing.assert_close(ours.mean, mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("below", [0, 1e-9, 1e-7])
def test_flow_sde_is_finite_if_the_first_sigma_is_1_but_for_rounding(below: float) -> None:
    gain, std = FlowSde(0.7)(FlowPath().at(1 - below), FlowPath().at(0.9))
    assert (gain, std) == pytest.approx((0.9 - 0.245, 0.7), abs=1e-6)


@pytest.mark.parametrize(("grid", "k"), STEPS)
def test_without_noise_all_flow_samplers_agree(grid: tuple[Point, ...], k: int) -> None:
    expected = Ode()(grid[k], grid[k + 1])
    for sampler in (Cps(0), FlowSde(0), DanceSde(0), Ddim(0)):
        assert sampler(grid[k], grid[k + 1]) == pytest.approx(expected, abs=1e-15)


def test_without_noise_ddim_and_cps_are_the_ode_of_a_diffusion_path() -> None:
    for here, there in pairwise(VpPath().grid(20)):
        assert Ddim(0)(here, there) == Cps(0)(here, there) == Ode()(here, there)


LEVELS = st.tuples(st.floats(0.001, 1), st.floats(0, 0.999)).map(lambda pair: (pair[0], pair[0] * pair[1]))
TIMES = st.tuples(st.integers(1, 999), st.integers(0, 998)).map(lambda pair: (pair[0], min(pair[1], pair[0] - 1)))


@given(levels=LEVELS, eta=st.floats(0, 1))
def test_coefficients_are_preserved_on_flows(levels: tuple[float, float], eta: float) -> None:
    here, there = map(FlowPath().at, levels)
    for sampler in (Ode(), Cps(eta), Ddim(0), Lcm()):
        gain, std = sampler(here, there)
        assert math.hypot(gain, std) == pytest.approx(there.sigma, rel=1e-9)


@given(times=TIMES, eta=st.floats(0, 1))
def test_coefficients_are_preserved_on_diffusion_paths(times: tuple[int, int], eta: float) -> None:
    path = VpPath()
    here, there = map(path.at, times)
    for sampler in (Ode(), Cps(eta), Ddim(eta), Lcm()):
        gain, std = sampler(here, there)
        assert math.hypot(gain, std) == pytest.approx(there.sigma, rel=1e-9)
        assert gain >= 0


@given(levels=LEVELS, eta=st.floats(0, 1.4), sde=st.sampled_from([FlowSde, DanceSde]))
def test_an_euler_maruyama_step_gives_up_noise_for_noise(levels: tuple[float, float], eta: float, sde: type) -> None:
    here, there = map(FlowPath().at, levels)
    gain, std = sde(eta)(here, there)
    assert gain == pytest.approx(there.sigma - std**2 / (2 * here.sigma), abs=1e-12)


def test_lcm_cps_with_eta_1_and_annealed_noise_of_1_forget_the_noise_they_had() -> None:
    here, there = FlowPath().at(0.8), FlowPath().at(0.5)
    assert Lcm()(here, there) == (0, 0.5)
    for sampler in (Cps(1), Annealed(1, 1)):
        assert sampler(here, there) == pytest.approx((0, 0.5), abs=1e-15)


@pytest.mark.parametrize("grid", [SD3, MIX, VpPath(spacing="trailing", final="one").grid(10)])
def test_the_last_step_to_clean_data_returns_the_clean_prediction(grid: tuple[Point, ...]) -> None:
    x, output = fields("x", "output")
    here, there = grid[-2:]
    prediction = read(output, x, here, "velocity" if here.alpha + here.sigma == 1 else "epsilon")
    for sampler in (Ode(), Cps(0.8), Ddim(1), Lcm()):
        same(step(sampler, prediction, here, there), prediction.x0, 0.0)


@pytest.mark.parametrize("make", [Ddim, Cps, FlowSde, DanceSde])
@pytest.mark.parametrize("eta", [-0.1, 11.0, math.nan])
def test_an_eta_outside_its_range_is_refused(make: type, eta: float) -> None:
    with pytest.raises(ValueError, match="eta must lie in"):
        make(eta)
