"""Grids and noise levels, against the public schedulers and the published tables."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from grpaint.core import FlowPath, VpPath
from grpaint.core.levels import spread_levels

BETAS = {"scaled-linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
STEPS = [1, 2, 3, 4, 7, 10, 16, 20, 25, 28, 30, 40, 50, 64, 100, 250, 333, 500, 999]


def public_ddim(spacing: str = "leading", betas: str = "scaled-linear", final_one: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=BETAS[betas],
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=final_one,
        clip_sample=False,
    )


@pytest.mark.parametrize("betas", BETAS)
def test_the_noise_schedule_is_that_of_diffusers(betas: str) -> None:
    theirs = public_ddim(betas=betas).alphas_cumprod.double()
    torch.testing.assert_close(torch.tensor(VpPath(betas=betas).abar), theirs.float(), rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
def test_timesteps_are_those_of_diffusers(spacing: str, steps: int) -> None:
    if spacing == "linspace" and steps == 1:
        assert VpPath(spacing="linspace").timesteps(1) == [999]  # diffusers asks at t = 0, which is no sampling
        return
    public = public_ddim(spacing)
    public.set_timesteps(steps)
    assert VpPath(spacing=spacing).timesteps(steps) == public.timesteps.tolist()


def test_ddpo_asks_at_981_down_to_1() -> None:
    assert VpPath().timesteps(50) == list(range(981, 0, -20))
    assert VpPath(offset=0).timesteps(50) == list(range(980, -1, -20))


@pytest.mark.parametrize(("final", "one"), [("first", False), ("one", True)])
def test_the_last_point_is_that_of_diffusers(final: str, one: bool) -> None:
    end = VpPath(final=final).grid(50)[-1]
    assert end.alpha**2 == pytest.approx(public_ddim(final_one=one).final_alpha_cumprod.item(), rel=1e-6)
    assert end.alpha**2 + end.sigma**2 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [*STEPS, 1000])
def test_sd3_sigmas_are_those_of_diffusers(steps: int, shift: float) -> None:
    public = FlowMatchEulerDiscreteScheduler(shift=shift)
    public.set_timesteps(steps)
    ours = [point.sigma for point in FlowPath(shift, "sd3").grid(steps)]
    assert ours == pytest.approx(public.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("steps", [6, 16, 25])
def test_linear_spacing_is_what_diffusers_makes_of_given_sigmas(steps: int) -> None:
    public = FlowMatchEulerDiscreteScheduler(shift=3)
    public.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    ours = [point.sigma for point in FlowPath(3).grid(steps)]
    assert ours == pytest.approx(public.sigmas.tolist(), abs=1e-6)


def test_the_published_sigmas_of_sd3() -> None:
    table = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    assert [point.sigma for point in FlowPath(3, "sd3").grid(10)] == pytest.approx(table, abs=6e-6)


def test_the_published_sigmas_of_flux() -> None:
    shift = math.exp(0.5 + (1024 - 256) / (4096 - 256) * 0.65)  # 1024 tokens at 512 pixels
    assert shift == pytest.approx(1.878, abs=5e-4)
    ours = [point.sigma for point in FlowPath(shift).grid(6)]
    assert ours == pytest.approx([1, 0.9037, 0.7897, 0.6525, 0.4842, 0.2730, 0], abs=6e-5)


@pytest.mark.parametrize(("t", "level"), [(999, 0.936), (500, 0.618), (0, 0.028)])
def test_stable_diffusion_never_reaches_pure_noise(t: int, level: float) -> None:
    _, alpha, sigma = VpPath().at(t)
    assert sigma / (alpha + sigma) == pytest.approx(level, abs=6e-4)


def test_stable_diffusion_ends_at_its_known_signal_level() -> None:
    assert VpPath().at(999).alpha == pytest.approx(0.0683, abs=5e-5)
    assert VpPath(betas="cosine").at(999).alpha == pytest.approx(5e-5, rel=0.05)


PATHS = [
    FlowPath(),
    FlowPath(3),
    FlowPath(3, "sd3"),
    VpPath(),
    VpPath(spacing="trailing", final="one"),
    VpPath(betas="cosine", spacing="linspace", final="one"),
    VpPath(betas="linear", first_beta=1e-4, last_beta=0.02),
    VpPath(terminal=0.0, spacing="trailing", final="one"),
    VpPath(terminal=2**-12, spacing="linspace", final="one", continuous=True),
    VpPath(final="one", continuous=True, levels="karras"),
    VpPath(continuous=True, levels="beta", ends=(14.6, 0.03)),
    FlowPath(3, levels="beta"),
    FlowPath(3, "sd3", levels="exponential"),
]


@pytest.mark.parametrize("path", PATHS, ids=str)
@given(steps=st.integers(1, 400))
def test_a_grid_falls_from_noise_to_data(path: FlowPath | VpPath, steps: int) -> None:
    grid = path.grid(steps)
    assert len(grid) == steps + 1
    assert all(here.sigma > there.sigma and here.alpha < there.alpha for here, there in pairwise(grid))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(("first", "parts"), [(0, 3), (4, 1), (4, 2), (7, 3), (9, 5)])
def test_a_tail_falls_from_its_grid_point_to_data(path: FlowPath | VpPath, first: int, parts: int) -> None:
    grid, tail = path.grid(10), path.tail(10, first, parts)
    assert len(tail) == parts + 1
    assert (tail[0].sigma, tail[-1]) == (pytest.approx(grid[first].sigma), grid[-1])
    rises = [(here, there) for here, there in pairwise(tail) if here.sigma <= there.sigma]
    assert not [pair for pair in rises if pair[0].t > parts]  # the last whole timesteps may be fewer than the parts


def test_levels_spread_as_published() -> None:
    karras = spread_levels("karras", 80, 0.002, 18)  # Karras et al. 2022: 18 steps of rho 7
    assert karras[:3] == pytest.approx([80, 57.586, 40.786], abs=5e-4)
    assert spread_levels("exponential", 8, 0.5, 5) == pytest.approx([8, 4, 2, 1, 0.5])
    beta = spread_levels("beta", 1, 0, 5)
    density = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)[1:-1]  # its integral, by the midpoint rule
    mass = ((density * (1 - density)) ** -0.4).cumsum(0)
    for share, level in zip((0.75, 0.5, 0.25), beta[1:4], strict=True):
        assert (mass[round(level * 2_000_000) - 1] / mass[-1]).item() == pytest.approx(share, abs=1e-4)
    assert (beta[0], beta[-1]) == (1, 0)
    with pytest.raises(ValueError, match="levels must be"):
        spread_levels("timesteps", 1, 0, 5)


@pytest.mark.parametrize("terminal", [0.0, 2**-12])
def test_zero_terminal_snr_is_that_of_diffusers(terminal: float) -> None:
    kind = EulerDiscreteScheduler if terminal else DDIMScheduler
    theirs = kind(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    ours = torch.tensor(VpPath(terminal=terminal).abar, dtype=torch.float64)
    torch.testing.assert_close(ours.sqrt(), theirs.sqrt(), rtol=0, atol=1e-6)
    assert ours[-1] == theirs[-1] == terminal**2


@given(sigma=st.floats(0, 1))
def test_a_flow_point_adds_up_to_one(sigma: float) -> None:
    t, alpha, s = FlowPath().at(sigma)
    assert (t, s, alpha + s) == (sigma, sigma, pytest.approx(1))


@pytest.mark.parametrize("path", [FlowPath(), VpPath(), VpPath(betas="cosine")], ids=str)
@given(draw=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=1, max_size=8))
def test_points_of_rows_equal_those_of_single_times(path: FlowPath | VpPath, draw: list[float]) -> None:
    t = path.times(torch.tensor(draw))
    rows = path.at(t)
    single = [path.at(value) for value in t.tolist()]
    for ours, name in ((rows.alpha, "alpha"), (rows.sigma, "sigma")):
        torch.testing.assert_close(ours, torch.tensor([getattr(point, name) for point in single]), rtol=0, atol=1e-6)


def test_training_times_cover_every_timestep_alike() -> None:
    draws = (torch.arange(100_000) + 0.5) / 100_000
    counts = VpPath().times(draws).bincount(minlength=1000)
    assert counts.tolist() == [100] * 1000
    assert torch.equal(FlowPath().times(draws), draws)


def test_a_tensor_of_double_precision_gives_double_precision() -> None:
    assert VpPath().at(torch.tensor([3.0], dtype=torch.float64)).alpha.dtype == torch.float64
    assert VpPath().at(torch.tensor([3])).alpha.dtype == torch.float32


@pytest.mark.parametrize("t", [0.4, 0.6, 500.7, 998.9])
def test_times_are_rounded_to_timesteps_in_floats_and_tensors(t: float) -> None:
    point, row = VpPath().at(t), VpPath().at(torch.tensor([t], dtype=torch.float64))
    assert row.sigma.item() == pytest.approx(point.sigma, rel=1e-12)


@pytest.mark.parametrize("path", [FlowPath(), VpPath()])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(path: FlowPath | VpPath, steps: int) -> None:
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.(1000|999)"):
        path.grid(steps)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_an_impossible_shift_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="shift must be positive"):
        FlowPath(shift)
