"""Keyed noise: the same key, the same numbers, whatever stands beside it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpaint.core import noise, permutation, uniform

SHAPES = [(3, 8, 8), (5, 2), (3,), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@given(rows=st.lists(st.integers(0, 10_000), min_size=1, max_size=6), cut=st.integers(0, 6))
def test_a_row_is_the_same_in_every_batch(shape: tuple[int, ...], rows: list[int], cut: int) -> None:
    whole = noise((1, 2, 3), rows, shape)
    parts = [noise((1, 2, 3), part, shape) for part in (rows[:cut], rows[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole.flip(0), noise((1, 2, 3), rows[::-1], shape))
    assert torch.equal(whole, noise((1, 2, 3), torch.tensor(rows), shape))


@given(
    first=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)),
    second=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)),
)
def test_differing_keys_differ(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    same = torch.equal(noise(first[:2], first[2:], (4, 4)), noise(second[:2], second[2:], (4, 4)))
    assert same == (first == second)


def test_words_and_numbers_make_different_keys() -> None:
    keys = [(0, 0), (0, 0, 0), ("0", 0), (0, "start"), (0, "reference")]
    drawn = [noise(key, [0], (16,)) for key in keys]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_noise_is_standard_normal_and_rows_are_independent() -> None:
    drawn = noise((7,), range(2000), (4, 8)).double().flatten(1)
    assert drawn.mean().item() == pytest.approx(0, abs=0.016)  # four standard errors of 64,000 draws
    assert drawn.var().item() == pytest.approx(1, abs=0.023)
    assert (drawn**4).mean().item() == pytest.approx(3, abs=0.16)
    beside = (drawn[:-1] * drawn[1:]).mean().item()
    assert beside == pytest.approx(0, abs=0.016)
    between = (drawn * noise((8,), range(2000), (4, 8)).double().flatten(1)).mean().item()
    assert between == pytest.approx(0, abs=0.016)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    drawn = uniform((3, "u"), 20_000)
    assert torch.equal(drawn, uniform((3, "u"), 20_000))
    assert not torch.equal(drawn, uniform((4, "u"), 20_000))
    counts = drawn.mul(10).long().bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 170  # four standard deviations


@given(seed=st.integers(0, 10**9), count=st.integers(0, 60))
def test_a_permutation_holds_every_number_once(seed: int, count: int) -> None:
    order = permutation((seed,), count)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation((seed,), count))


def test_permutations_of_other_keys_differ() -> None:
    orders = {tuple(permutation((seed,), 8).tolist()) for seed in range(200)}
    assert len(orders) > 190


def test_no_global_state_is_read_or_moved() -> None:
    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    first = noise((0,), [0], (4,)), permutation((0,), 9), uniform((0,), 4)
    torch.manual_seed(2)
    second = noise((0,), [0], (4,)), permutation((0,), 9), uniform((0,), 4)
    assert all(map(torch.equal, first, second))
    moved = torch.random.get_rng_state()
    noise((0,), range(4), (4,))
    assert torch.equal(moved, torch.random.get_rng_state())
    torch.random.set_rng_state(before)


def test_no_rows_make_an_empty_batch() -> None:
    assert noise((0,), [], (3, 2)).shape == (0, 3, 2)


def test_the_numbers_never_change() -> None:
    """Results of old runs can be repeated only while this holds."""
    drawn = noise((0, 1, 2), [3], (3,))[0].tolist()
    assert drawn == pytest.approx([-0.023228740319609642, 1.5351933240890503, 0.1017623022198677], abs=1e-6)
    assert permutation((0,), 6).tolist() == [2, 1, 5, 4, 0, 3]
