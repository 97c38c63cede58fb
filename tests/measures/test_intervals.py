"""Statistics over a few seeds, against tables and closed forms."""

import math

import pytest
import torch

from grpaint.measures.intervals import (
    bootstrap_interval,
    holm,
    mean_interval,
    normal_interval,
    paired_t,
    t_cdf,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(t, abs=2e-4)
    assert t_cdf(t, freedom) == pytest.approx(0.975, abs=1e-5)


def test_one_and_two_degrees_of_freedom_have_closed_forms() -> None:
    for t in (-3.0, -0.5, 0.0, 0.7, 6.0):
        assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-9)
        assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-9)


def test_the_interval_of_small_values_holds_their_mean() -> None:
    for scale in (1.0, 1e-3, 1e-6):
        values = scale * torch.tensor([3.0, 4.0, 5.0, 4.0])
        low, high = normal_interval(values)
        half = 1.96 * values.std().item() / 2
        assert (low, high) == pytest.approx((4 * scale - half, 4 * scale + half), rel=1e-3)
    assert normal_interval(torch.full((3,), 4e-6)) == pytest.approx([4e-6, 4e-6])


def test_an_interval_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.77645 * math.sqrt(2.5) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-4)
    assert mean_interval([0.7]) == (0.7, 0.7, 0.7)


def test_a_paired_test_with_four_degrees_of_freedom() -> None:
    # t = 2 / (sqrt(2.5) / sqrt(5)) = 2.8284; with 4 degrees the closed form of the distribution is
    # F = 1/2 + 3/8 * u * (1 - u^2 / 12) with u = t / sqrt(1 + t^2 / 4)
    u = 2.828427 / math.sqrt(1 + 2.828427**2 / 4)
    p = 2 * (0.5 - 3 / 8 * u * (1 - u * u / 12))
    assert paired_t([0.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(p, abs=1e-6)
    assert paired_t([-1.0, 1.0]) == 1
    assert paired_t([0.3]) == 1
    assert paired_t([0.2, 0.2, 0.2]) == 0


def test_the_bootstrap_covers_as_it_should_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval((torch.randn(30, generator=generator) + 1).tolist(), draws=1000)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.98
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}
