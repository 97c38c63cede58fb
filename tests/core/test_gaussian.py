"""The distribution of a step, against torch.distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.distributions import Normal, kl_divergence

from grpaint.core import Gaussian

SHAPES = [(4, 3, 5, 5), (2, 7, 6), (3, 1)]
POSITIVE = st.floats(0.01, 5)


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@given(std=POSITIVE)
def test_log_prob_is_the_mean_log_density_of_the_elements(shape: tuple[int, ...], std: float) -> None:
    mean, x = drawn(shape, 0), drawn(shape, 1)
    expected = Normal(mean, std).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(Gaussian(mean, std).log_prob(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@given(std=POSITIVE, other=POSITIVE)
def test_kl_is_the_mean_divergence_of_the_elements(shape: tuple[int, ...], std: float, other: float) -> None:
    here, there = drawn(shape, 0), drawn(shape, 1)
    expected = kl_divergence(Normal(here, std), Normal(there, other)).flatten(1).mean(1)
    torch.testing.assert_close(Gaussian(here, std).kl(Gaussian(there, other)), expected, rtol=1e-10, atol=1e-12)


def test_kl_with_equal_std_is_the_mean_square_over_twice_the_variance() -> None:
    here, there, std = drawn((3, 2, 4), 0), drawn((3, 2, 4), 1), 0.3
    expected = ((here - there) ** 2).flatten(1).mean(1) / (2 * std**2)
    torch.testing.assert_close(Gaussian(here, std).kl(Gaussian(there, std)), expected)
    assert Gaussian(here, std).kl(Gaussian(here, std)).abs().max() < 1e-15


def test_the_log_prob_of_its_own_samples_averages_to_minus_the_entropy() -> None:
    mean, std = torch.zeros(64, 1000, dtype=torch.float64), 0.4
    action = Gaussian(mean, std).sample(drawn((64, 1000), 2))
    entropy = Normal(0.0, std).entropy().item()
    assert Gaussian(mean, std).log_prob(action).mean().item() == pytest.approx(-entropy, abs=0.02)


def test_a_sample_is_mean_plus_std_times_noise() -> None:
    mean, noise = drawn((2, 3), 0), drawn((2, 3), 1)
    torch.testing.assert_close(Gaussian(mean, 0.25).sample(noise), mean + 0.25 * noise, rtol=0, atol=0)
    assert torch.equal(Gaussian(mean, 0.0).sample(noise), mean)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_deterministic_step_has_no_density(std: float) -> None:
    flat, normal = Gaussian(torch.zeros(2, 3), std), Gaussian(torch.zeros(2, 3), 1.0)
    with pytest.raises(ValueError, match="no log-probability"):
        flat.log_prob(torch.zeros(2, 3))
    for pair in ((flat, normal), (normal, flat)):
        with pytest.raises(ValueError, match="no KL divergence"):
            pair[0].kl(pair[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_stay_in_the_precision_they_came_in(dtype: torch.dtype) -> None:
    mean, x = drawn((2, 5), 0, dtype), drawn((2, 5), 1, dtype)
    here = Gaussian(mean, 0.5)
    assert {here.sample(x).dtype, here.log_prob(x).dtype, here.kl(Gaussian(x, 0.7)).dtype} == {dtype}


def test_the_gradient_of_the_log_prob_is_the_scaled_residual() -> None:
    mean, x = drawn((2, 8), 0).requires_grad_(), drawn((2, 8), 1)
    Gaussian(mean, 0.5).log_prob(x).sum().backward()
    torch.testing.assert_close(mean.grad, (x - mean.detach()) / 0.25 / 8)


def test_flattened_latents_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        Gaussian(torch.zeros(2, 3), 1.0).log_prob([0.0, 1.0])  # type: ignore[arg-type]
