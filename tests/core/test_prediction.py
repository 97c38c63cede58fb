"""Reading a network: whatever it emits, the two parts add up to what it was shown."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from grpaint.core import FlowPath, Point, VpPath, read

TIMES = st.integers(0, 999)
SIGMAS = st.floats(0, 1)


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(2, *shape, generator=generator, dtype=dtype))


@given(sigma=SIGMAS)
def test_a_velocity_adds_up(sigma: float) -> None:
    x, output = pair(3, 2, 4)
    here = FlowPath().at(sigma)
    x0, eps = read(output, x, here, "velocity")
    torch.testing.assert_close(here.alpha * x0 + here.sigma * eps, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(eps - x0, output, rtol=1e-9, atol=1e-9)


@given(t=TIMES, kind=st.sampled_from(["epsilon", "v"]), betas=st.sampled_from(["scaled-linear", "cosine"]))
def test_diffusion_outputs_add_up(t: int, kind: str, betas: str) -> None:
    x, output = pair(3, 2, 4)
    here = VpPath(betas=betas).at(t)
    x0, eps = read(output, x, here, kind)
    torch.testing.assert_close(here.alpha * x0 + here.sigma * eps, x, rtol=1e-7, atol=1e-7)


@given(t=TIMES)
def test_reading_undoes_noising(t: int) -> None:
    clean, noise = pair(3, 2, 4)
    here = VpPath().at(t)
    x = here.alpha * clean + here.sigma * noise
    for kind, output in (("epsilon", noise), ("v", here.alpha * noise - here.sigma * clean)):
        x0, eps = read(output, x, here, kind)
        torch.testing.assert_close(x0, clean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(eps, noise, rtol=1e-8, atol=1e-8)


def test_rows_may_stand_at_different_points() -> None:
    x, output = pair(4, 3, 2, 2)
    t = torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64).view(4, 1, 1, 1)
    together = read(output, x, FlowPath().at(t), "velocity")
    alone = [read(output[i : i + 1], x[i : i + 1], FlowPath().at(t[i].item()), "velocity") for i in range(4)]
    torch.testing.assert_close(together.x0, torch.cat([part.x0 for part in alone]))
    torch.testing.assert_close(together.eps, torch.cat([part.eps for part in alone]))


@pytest.mark.parametrize("kind", ["velocity", "epsilon", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_preserved(kind: str, dtype: torch.dtype) -> None:
    x, output = pair(2, 3, dtype=dtype)
    x0, eps = read(output, x, Point(0.5, 0.5, 0.5), kind)
    assert (x0.dtype, eps.dtype) == (dtype, dtype)


def test_another_kind_of_output_is_refused() -> None:
    x, output = pair(2, 3)
    with pytest.raises((ValueError, TypeCheckError)):
        read(output, x, Point(0.5, 0.5, 0.5), "sample")


def test_shapes_are_checked_while_testing() -> None:
    x, _ = pair(2, 3)
    with pytest.raises(TypeCheckError):
        read(x.mT, x, Point(0.5, 0.5, 0.5), "velocity")
