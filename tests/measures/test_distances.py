"""FID, KID and recall against their formulas written out, and against torchmetrics."""

import pytest
import torch
from torch import nn

from grpaint.measures.distances import KernelDistance, Moments, frechet_distance, pairwise_distance, recall_hits


def drawn(count, width, seed, scale=1.0):
    return scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fid(a, b):
    return frechet_distance(Moments.of(a), Moments.of(b))


def by_eigenvalues(a, b):
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2), in float64."""
    one, other = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    common = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + one.trace() + other.trace() - 2 * common).item()


class Given(nn.Module):
    """Images that are features already."""

    num_features = 12

    def forward(self, x):
        return x


@pytest.mark.parametrize(("n", "m"), [(200, 150), (20, 150), (9, 7), (2, 2)], ids=str)
def test_fid_is_its_formula_with_singular_covariances_too(n, m):
    a, b = drawn(n, 12, 0) @ drawn(12, 12, 2), 0.7 * drawn(m, 12, 1) + 0.3
    assert fid(a, b) == pytest.approx(by_eigenvalues(a, b), abs=1e-6)
    assert fid(a, b) == pytest.approx(fid(b, a), abs=1e-9)


@pytest.mark.parametrize("n", [40, 5])
def test_fid_of_scaled_and_shifted_features_is_known(n):
    a, shift = drawn(n, 12, 3), torch.arange(12.0).double()
    mean, spread = a.mean(0), torch.cov(a.T).trace()
    expected = (mean - (3 * mean + shift)).square().sum() + 4 * spread
    assert fid(a, 3 * a + shift) == pytest.approx(expected.item(), rel=1e-12)
    assert abs(fid(a, a)) < 1e-12


def test_fid_and_kid_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = drawn(120, 12, 4), 1.2 * drawn(120, 12, 5) + 0.1
    theirs = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=120).set_dtype(torch.float64)
    for metric in (theirs, kernel):
        metric.update(b, real=True)
        metric.update(a, real=False)
    assert fid(a, b) == pytest.approx(theirs.compute().item(), abs=1e-6)
    assert KernelDistance(a, b)() == pytest.approx(kernel.compute()[0].item(), abs=1e-6)


def mmd(a, b, rows):
    """The unbiased estimate, pair by pair; no image with itself or its copy."""

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    own = [k(a[i], a[j]) for p, i in enumerate(rows) for q, j in enumerate(rows) if p != q and i != j]
    theirs = [k(b[i], b[j]) for i in range(len(b)) for j in range(len(b)) if i != j]
    cross = [k(a[i], y) for i in rows for y in b]
    return sum(own) / len(own) + sum(theirs) / len(theirs) - 2 * sum(cross) / len(cross)


def test_kid_is_its_formula_and_never_pairs_copies():
    a, b = drawn(7, 3, 6), drawn(9, 3, 7) + 0.5
    kernel = KernelDistance(a, b)
    assert kernel() == pytest.approx(mmd(a, b, range(7)).item(), abs=1e-12)
    times = torch.tensor([2, 0, 1, 1, 3, 0, 0])
    rows = torch.arange(7).repeat_interleave(times).tolist()
    assert kernel(times.double()) == pytest.approx(mmd(a, b, rows).item(), abs=1e-12)


def test_recall_falls_if_a_mode_is_left_out():
    reference = torch.cat([drawn(60, 4, 8), drawn(60, 4, 9) + 20])
    both, one = torch.cat([drawn(60, 4, 10), drawn(60, 4, 11) + 20]), drawn(120, 4, 12)
    assert recall_hits(reference, reference).mean() == 1
    assert recall_hits(both, reference).mean() > 0.8
    assert recall_hits(one, reference)[60:].sum() == 0
    x, y = torch.tensor([[0.0], [1], [3], [7]]), torch.tensor([[3.5], [11.1]])
    assert recall_hits(x, y, 1).tolist() == [1, 0]  # 3 reaches 2, 7 reaches 4
    with pytest.raises(ValueError, match="more than 3 images"):
        recall_hits(reference[:3], reference)


def test_distance_within_groups():
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0], [9, 9], [9, 9]])
    assert pairwise_distance(features, torch.tensor([0, 0, 0, 1, 1])).tolist() == [10 / 3, 0]
    with pytest.raises(ValueError, match="group 1 has 1 image"):
        pairwise_distance(features, torch.tensor([0, 0, 0, 0, 1]))
