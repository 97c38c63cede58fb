"""Distances between the features of images and of reference images: Frechet, kernel and pairwise distance, and recall.

All are computed in float64 from the features themselves. torchmetrics has the first two, but its Frechet distance forms
covariances and takes their root by a general solver, and its kernel distance draws random subsets. Here no covariance
is formed and nothing is drawn: singular covariances lose no digits, and the same images give the same number. The tests
compare both with torchmetrics on data for which that is accurate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Features = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Moments:
    """Mean ``[d]`` of features and a root ``R`` of their covariance, R^T R = cov: the input of a Frechet distance."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """The moments of two or more rows of features.

        Raises:
            ValueError: if there are fewer than two.
        """
        if len(features) < 2:
            raise ValueError(f"a covariance needs 2 rows or more, got {len(features)}")
        exact = features.double()
        mean = exact.mean(0)
        return cls(mean, torch.linalg.qr((exact - mean) / (len(exact) - 1) ** 0.5, mode="r").R)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, FID); 0 if they are equal.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). The eigenvalues of C1 C2 are the squared singular values of
    R1 R2^T, so the last trace is the sum of those singular values: no matrix root, and singular C1 or C2 do no harm.
    """
    shift = (one.mean - other.mean).square().sum()
    common = torch.linalg.svdvals(one.root @ other.root.T).sum()
    return (shift + one.root.square().sum() + other.root.square().sum() - 2 * common).item()


class KernelDistance:
    """Squared maximum mean discrepancy (Binkowski et al. 2018, KID) with the kernel (x y / d + 1)^3, unbiased.

    It is taken over all images at once; the published code averages over random subsets. It may fall below 0.
    """

    def __init__(self, features: Features, reference: Features) -> None:
        a, b = features.double(), reference.double()
        among_references = _kernel(b, b)
        self.kernel, self.cross = _kernel(a, a), _kernel(a, b).mean(1)
        self.reference_mean = (among_references.sum() - among_references.trace()) / (len(b) * (len(b) - 1))

    def __call__(self, counts: Float[Tensor, " n"] | None = None) -> float:
        """The distance of all images, or of a resample that contains image i ``counts[i]`` times.

        An image is never paired with itself or with another copy of itself.
        """
        w = torch.ones(len(self.kernel), dtype=torch.float64) if counts is None else counts.double()
        pairs = w.sum().square() - w.square().sum()
        within = (w @ self.kernel @ w - (w.square() * self.kernel.diagonal()).sum()) / pairs
        return (within + self.reference_mean - 2 * (w @ self.cross) / w.sum()).item()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def recall_hits(features: Features, reference: Features, neighbours: int = 3) -> Float[Tensor, " m"]:
    """1 for each reference image that lies within the radius of some generated image, else 0; the mean is recall.

    Kynkaanniemi et al. 2019, eq. 1 and 2: the radius of a generated image is the distance to its ``neighbours``-th
    nearest generated image. With the arguments swapped, the mean is precision.

    Raises:
        ValueError: if there are not more images than ``neighbours``.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, got {len(features)}")
    a, b = features.double(), reference.double()
    radius = torch.cdist(a, a).kthvalue(neighbours + 1, dim=1).values  # the nearest is the image itself
    return (torch.cdist(b, a) <= radius).any(1).double()


def pairwise_distance(features: Features, group: Int[Tensor, " n"]) -> Float[Tensor, " groups"]:
    """Mean Euclidean distance between the images of each group, in ascending order of the group numbers.

    Raises:
        ValueError: if a group has a single image.
    """
    out = []
    for number in group.unique().tolist():
        members = features[group == number].double()
        if len(members) < 2:
            raise ValueError(f"group {number} has 1 image; a distance needs 2")
        out.append(torch.pdist(members).mean())
    return torch.stack(out)
