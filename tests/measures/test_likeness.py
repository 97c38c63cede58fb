"""SSIM, PSNR, the stand-in distance and the plain statistics against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from grpaint.core.policy import Prompt
from grpaint.measures.image_statistics import image_statistics
from grpaint.measures.likeness import likeness
from grpaint.rewards.scenes import SceneDistance
from grpaint.scenes.scorer import shipped_scorer
from grpaint.scenes.world import SceneData


@pytest.fixture(scope="module")
def pair():
    images = SceneData().held_out_images(4, 0).images()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.05 * noise).clamp(0, 1), images


def ssim(a, b):
    """Wang et al. 2004, (13), a Gaussian window of 11 with sigma 1.5; images are mirrored at their borders."""
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x):
        return F.conv2d(x, window, groups=3)

    a, b = (F.pad(x, (5, 5, 5, 5), mode="reflect") for x in (a, b))
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * ma * mb + c1) * (2 * both + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return value.mean((1, 2, 3))


def test_ssim_and_psnr_are_their_formulas(pair):
    value, (a, b) = likeness(*pair), (x.double() for x in pair)
    torch.testing.assert_close(value["ssim"], ssim(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(value["psnr"], -10 * (a - b).square().mean((1, 2, 3)).log10(), rtol=1e-6, atol=0)
    same = likeness(pair[1], pair[1])
    assert same["ssim"].tolist() == pytest.approx([1] * 4)
    assert same["psnr"].isinf().all()


@pytest.mark.parametrize("size", [(3, 8, 8), (3, 32, 31)], ids=str)
def test_impossible_comparisons_are_refused(size):
    with pytest.raises(ValueError, match="11 pixels or more"):
        likeness(torch.zeros(1, *size), torch.zeros(1, 3, 8, 8) if size[1] == 8 else torch.zeros(1, 3, 32, 32))


def test_the_stand_in_for_lpips_is_its_formula(pair):
    a, b = pair
    layers = []
    for x, y in zip(shipped_scorer().image.maps(a), shipped_scorer().image.maps(b), strict=True):
        one, other = (z.double() / z.double().square().sum(1, keepdim=True).sqrt() for z in (x, y))
        layers.append(((one - other) ** 2).sum(1).mean((1, 2)))
    distances = SceneDistance()(a, [Prompt("", {}, image) for image in b])
    torch.testing.assert_close(distances.double(), -torch.stack(layers).mean(0), rtol=0, atol=1e-6)


def flat(*colour):
    return torch.tensor(colour)[:, None, None].expand(3, 32, 32)


def only(name, *images):
    return image_statistics(torch.stack(images))[name].tolist()


def test_statistics_of_images_that_are_known():
    half = flat(0.0, 0, 0).clone()
    half[:, :, 16:] = 1
    assert only("image/dark_fraction", flat(0.0, 0, 0), flat(1.0, 1, 1), half) == [1, 0, 0.5]
    assert only("image/saturation", flat(1.0, 0, 0), flat(0.5, 0.5, 0.5), flat(0.0, 0, 0)) == [1, 0, 0]
    assert only("image/colour_entropy", flat(1.0, 0, 0), half) == [0, 1]
    assert only("image/edge_density", flat(0.3, 0.3, 0.3), half) == pytest.approx([0, 1 / 31])
    far = math.sqrt(0.5)
    assert only("image/spread", flat(0.0, 0, 0), flat(0.0, 0, 0), half) == pytest.approx([far / 2, far / 2, far])
    assert only("image/spread", half) == [0]


def test_grid_energy_is_that_of_a_pattern_and_not_of_an_object():
    x = torch.arange(32)
    weave = 0.02 * torch.cos(2 * math.pi * x / 8)[None, None].expand(3, 32, 32)
    plain, woven = flat(0.2, 0.2, 0.2), flat(0.2, 0.2, 0.2) + weave
    thing = plain.clone()
    thing[:, 4:20, 4:20] = 0.9
    seen = only("image/grid_energy", plain, woven, thing, woven + 0.3)
    assert seen == pytest.approx([0, 0.02**2 / 2, 0, 0.02**2 / 2], abs=1e-9)
    assert image_statistics(torch.zeros(2, 3, 7, 40))["image/grid_energy"].tolist() == [0, 0]
