"""How far the features of images lie from those of reference images: Frechet and kernel distance, and recall.

All three in float64 on the features themselves. torchmetrics has the first two, but its Frechet distance squares the
features into covariances and asks a general solver for the roots, and its kernel distance draws random subsets. Here
nothing is squared and nothing drawn: singular covariances lose no digits, and the same images give the same number. The
tests hold both to torchmetrics where that is accurate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Features = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Moments:
    """Mean ``[d]`` and a root ``R`` of the covariance of features, R^T R = cov: all that a Frechet distance needs."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """Of at least two rows."""
        if len(features) < 2:
            raise ValueError(f"a covariance needs 2 rows or more, got {len(features)}")
        exact = features.double()
        mean = exact.mean(0)
        return cls(mean, torch.linalg.qr((exact - mean) / (len(exact) - 1) ** 0.5, mode="r").R)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, FID): 0 for equal ones.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). The eigenvalues of C1 C2 are the squared singular values of
    R1 R2^T, so the last trace is their plain sum: no matrix root, and nothing to fail where C1 or C2 is singular.
    """
    shift = (one.mean - other.mean).square().sum()
    common = torch.linalg.svdvals(one.root @ other.root.T).sum()
    return (shift + one.root.square().sum() + other.root.square().sum() - 2 * common).item()


class KernelDistance:
    """Squared maximum mean discrepancy (Binkowski et al. 2018, KID) with the kernel (x y / d + 1)^3, unbiased.

    Over all images at once, where the published code averages over random subsets of them. It may fall below 0.
    """

    def __init__(self, features: Features, reference: Features) -> None:
        a, b = features.double(), reference.double()
        own, theirs = _kernel(a, a), _kernel(b, b)
        self.own, self.cross = own, _kernel(a, b).mean(1)
        self.theirs = (theirs.sum() - theirs.trace()) / (len(b) * (len(b) - 1))

    def __call__(self, times: Float[Tensor, " n"] | None = None) -> float:
        """The distance of all images, or of a resample that holds image i ``times[i]`` times.

        An image is never paired with itself, nor with another copy of it.
        """
        w = torch.ones(len(self.own), dtype=torch.float64) if times is None else times.double()
        pairs = w.sum().square() - w.square().sum()
        within = (w @ self.own @ w - (w.square() * self.own.diagonal()).sum()) / pairs
        return (within + self.theirs - 2 * (w @ self.cross) / w.sum()).item()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def recalled(features: Features, reference: Features, neighbours: int = 3) -> Float[Tensor, " m"]:
    """1 for each reference image that lies within reach of a generated one; the mean is recall.

    Kynkaanniemi et al. 2019 (1), (2): a generated image reaches to its ``neighbours``-th nearest one.
    Swapped arguments give precision.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, got {len(features)}")
    a, b = features.double(), reference.double()
    reach = torch.cdist(a, a).kthvalue(neighbours + 1, dim=1).values  # the nearest is the image itself
    return (torch.cdist(b, a) <= reach).any(1).double()


def pairwise_distance(features: Features, group: Int[Tensor, " n"]) -> Float[Tensor, " groups"]:
    """Mean Euclidean distance between the images of each group, in the order of the groups' numbers."""
    out = []
    for number in group.unique().tolist():
        members = features[group == number].double()
        if len(members) < 2:
            raise ValueError(f"group {number} has 1 image; a distance needs 2")
        out.append(torch.pdist(members).mean())
    return torch.stack(out)
