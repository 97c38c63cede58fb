"""Does an image show what its caption says? Exact for drawn scenes, and graded for everything near them.

Pixels are read as background with some coverage of the nearest colour; covered pixels of one colour that touch form a
component; a component's shape is the template of its own area and centroid that overlaps it best.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from grpaint.scenes.captions import COLOURS, MOST_THINGS, SHAPES, Caption
from grpaint.scenes.shapes import BACKGROUND, PALETTE, SIDE, coverage, outlines, pixel_centres

SEEN = 6  # components of an image that are looked at, the largest first
SMALLEST = 4  # pixels; below that a component is dirt, not an object
SHAPE_OVERLAP = 0.72  # soft intersection over union that a shape must reach
SMALL_BELOW, LARGE_ABOVE = 3.7, 4.7  # radius of the disc of equal area, in pixels
PATCH = 8  # pixels: the side of a patch of the built-in model
ASIDE = 1.5  # pixels that an object must lie to the named side


@dataclass(frozen=True)
class Verdict:
    """``strict``: every constraint of the caption holds (0 or 1). ``soft``: how far they do, in [0, 1], 1 if strict."""

    strict: Float[Tensor, " b"]
    soft: Float[Tensor, " b"]
    background: Float[Tensor, " b"]
    patch_energy: Float[Tensor, " b"]


@dataclass(frozen=True)
class Components:
    """The ``SEEN`` largest components of each image; ``radius`` 0 where there are fewer."""

    colour: Int[Tensor, "b seen"]
    radius: Float[Tensor, "b seen"]
    x: Float[Tensor, "b seen"]
    y: Float[Tensor, "b seen"]
    overlap: Float[Tensor, "b seen shapes"]
    total: Float[Tensor, " b"]


def _read_colours(images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
    """Nearest background-to-colour line of each pixel, and the coverage of every colour there."""
    lines = PALETTE - torch.tensor(BACKGROUND)
    offset = images - torch.tensor(BACKGROUND)[:, None, None]
    along = torch.einsum("bchw,nc->bnhw", offset, lines) / lines.square().sum(1)[:, None, None]
    along = along.clamp(0, 1)
    distance = along.square() * lines.square().sum(1)[:, None, None]
    distance = distance - 2 * along * torch.einsum("bchw,nc->bnhw", offset, lines)
    return distance.argmin(1), along


def _label(colour: Int[Tensor, "b h w"], covered: Tensor) -> Int[Tensor, "b pixels"]:
    """Number touching pixels of one colour alike: the largest pixel number (from 1) of their component, 0 outside."""
    kind = torch.where(covered, colour, -1)
    numbers = torch.arange(1, SIDE * SIDE + 1).view(1, SIDE, SIDE) * covered
    beside = (kind[:, :, 1:] == kind[:, :, :-1]) & covered[:, :, 1:]
    below = (kind[:, 1:] == kind[:, :-1]) & covered[:, 1:]
    while True:
        before = numbers
        grown = numbers.clone()
        grown[:, :, 1:] = torch.maximum(grown[:, :, 1:], numbers[:, :, :-1] * beside)
        grown[:, :, :-1] = torch.maximum(grown[:, :, :-1], numbers[:, :, 1:] * beside)
        grown[:, 1:] = torch.maximum(grown[:, 1:], numbers[:, :-1] * below)
        grown[:, :-1] = torch.maximum(grown[:, :-1], numbers[:, 1:] * below)
        flat = grown.flatten(1)
        flat = torch.where(flat > 0, flat.gather(1, (flat - 1).clamp(min=0)), 0)  # jump to the neighbour's own number
        numbers = flat.view_as(grown)
        if torch.equal(numbers, before):
            return flat


def find(images: Float[Tensor, "b 3 h w"]) -> Components:
    """The components of images in [0, 1]."""
    colour, along = _read_colours(images)
    covered = along.gather(1, colour[:, None])[:, 0] > 0.5
    labels = _label(colour, covered)
    area = torch.zeros(len(images), SIDE * SIDE + 1).scatter_add_(1, labels, torch.ones(labels.shape))[:, 1:]
    area = torch.where(area >= SMALLEST, area, 0)
    size, root = area.topk(SEEN)
    row, slot = (size > 0).nonzero(as_tuple=True)
    seed = root[row, slot]
    hue = colour.flatten(1)[row, seed]
    mask = (labels[row] == (seed + 1)[:, None]).view(-1, 1, SIDE, SIDE)
    near = F.max_pool2d(mask.float(), 3, 1, 1)[:, 0]  # anti-aliased edges belong to their object
    cover = along[row, hue] * near
    mass = cover.sum((1, 2)).clamp(min=1e-6)
    px, py = pixel_centres()
    x, y = (cover * px).sum((1, 2)) / mass, (cover * py).sum((1, 2)) / mass
    radius = (mass / math.pi).sqrt()
    templates = coverage(outlines(px - x[:, None, None], py - y[:, None, None], radius[:, None, None]))
    both = torch.minimum(templates, cover[:, None]).sum((2, 3))
    overlap = both / (mass[:, None] + templates.sum((2, 3)) - both)

    def table(values: Tensor) -> Tensor:
        out = torch.zeros(len(images), SEEN, *values.shape[1:], dtype=values.dtype)
        out[row, slot] = values
        return out

    return Components(table(hue), table(radius), table(x), table(y), table(overlap), (area > 0).sum(1).float())


@cache
def _assignments() -> Int[Tensor, "n things"]:
    return torch.tensor(list(itertools.permutations(range(SEEN), MOST_THINGS)))


@dataclass(frozen=True)
class _Wanted:
    """Captions as tables, one column an object, padded to ``MOST_THINGS``."""

    shape: Tensor
    colour: Tensor
    size: Tensor  # -1 small, 1 large, 0 unsaid
    owner: Tensor  # number of the thing, -1 where there is no object
    axis: Tensor  # [b, 2]: the direction from the first thing to the second, 0 where no relation is named


_DIRECTION = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1), "": (0, 0)}
_SIZE = {"small": -1, "": 0, "large": 1}


def _tables(captions: Sequence[Caption]) -> _Wanted:
    rows = []
    for caption in captions:
        slots = [
            (SHAPES.index(thing.shape), COLOURS.index(thing.colour), _SIZE[thing.size], number)
            for number, thing in enumerate(caption.things)
            for _ in range(thing.count)
        ]
        rows.append(slots + [(0, 0, 0, -1)] * (MOST_THINGS - len(slots)))
    shape, colour, size, owner = torch.tensor(rows).unbind(-1)
    return _Wanted(
        shape, colour, size, owner, torch.tensor([_DIRECTION[c.relation] for c in captions], dtype=torch.float)
    )


def _size_fits(size: Tensor, radius: Tensor, slack: float) -> Tensor:
    """1 where a size word holds, falling to 0 over ``slack`` pixels of radius; 1 where none is said."""
    excess = torch.where(size < 0, radius - SMALL_BELOW, LARGE_ABOVE - radius)
    return torch.where(size == 0, 1.0, (1 - excess / slack).clamp(0, 1) if slack else (excess < 0).float())


def _lies(found: Components, wanted: _Wanted, pick: Tensor) -> tuple[Tensor, Tensor]:
    """How far (pixels) the worst object lies to the named side, and whether the offset is mostly along it."""
    place = torch.stack([found.x.gather(1, pick), found.y.gather(1, pick)], -1)
    along = (place * wanted.axis[:, None]).sum(-1)
    first, second = wanted.owner == 0, wanted.owner == 1
    last = along.masked_fill(~first, -math.inf).amax(1)
    distance = along.masked_fill(~second, math.inf).amin(1) - last

    def centre(mask: Tensor) -> Tensor:
        return (place * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    offset = centre(second) - centre(first)
    straight = (offset * wanted.axis).sum(1) >= (offset * wanted.axis.flip(1)).sum(1).abs()
    return distance, straight


def check(images: Float[Tensor, "b 3 h w"], captions: Sequence[Caption]) -> Verdict:
    """Judge images in [0, 1] against their captions."""
    images = images.detach().float().cpu()
    found, wanted = find(images), _tables(captions)
    there = wanted.owner >= 0
    exists = (found.radius > 0)[:, None]
    # [b, things, seen]: how well component s serves as object n
    shape = wanted.shape[..., None]
    overlap = found.overlap.permute(0, 2, 1).gather(1, shape.expand(-1, -1, SEEN))
    best = found.overlap.argmax(-1)[:, None] == shape
    hue = found.colour[:, None] == wanted.colour[..., None]
    size, radius = wanted.size[..., None], found.radius[:, None]
    exact = exists & hue & best & (overlap > SHAPE_OVERLAP) & (_size_fits(size, radius, 0) > 0)
    likeness = ((overlap - 0.5) / 0.45).clamp(0, 1) * torch.where(best, 1.0, 0.6)
    graded = exists * (0.2 + 0.4 * hue) * (0.5 + 0.5 * likeness) + exists * hue * 0.4 * likeness
    graded = graded * (0.5 + 0.5 * _size_fits(size, radius, 2.0))
    ways = _assignments()
    each = graded.new_zeros(len(images), len(ways))
    for n in range(MOST_THINGS):
        each += (graded[:, n] * there[:, n, None])[:, ways[:, n]]
    pick = ways[each.argmax(1)]
    number = there.sum(1)
    chosen = graded.gather(2, pick[..., None])[..., 0] * there
    right = (exact.gather(2, pick[..., None])[..., 0] | ~there).all(1)

    related = wanted.axis.abs().sum(1) > 0
    distance, straight = _lies(found, wanted, pick)
    complete = (found.radius.gather(1, pick) > 0) | ~there
    side = torch.where(complete.all(1), torch.sigmoid((distance.clamp(-32, 32) - ASIDE) / 3), 0.0)
    holds = ~related | ((distance > ASIDE) & straight)
    extra = (found.total - number).clamp(min=0)
    clean = 1 / (1 + extra)
    score = chosen.sum(1) / number
    weight = 1 + 0.35 * related
    soft = (score * (0.7 + 0.3 * clean) + 0.35 * related * side * (0.5 + 0.5 * straight)) / weight
    strict = right & holds & (extra == 0)
    # what is right is not to be made righter: a group that is all right has no spread, and teaches nothing
    off, free = _background(images)
    verdict = strict.float(), torch.where(strict, 1.0, soft.clamp(0, 1))
    return Verdict(*verdict, _rms(off, free), _patch_energy(off, free))


def _background(images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Deviation from the true background colour, and 1 where a pixel lies two or more away from any covered one."""
    colour, along = _read_colours(images)
    covered = along.gather(1, colour[:, None]) > 0.5
    return images - torch.tensor(BACKGROUND)[:, None, None], 1 - F.max_pool2d(covered.float(), 5, 1, 2)


def background(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Root-mean-square deviation of background pixels from the true background colour, in units of [0, 1].

    Pixels two or more away from any covered one count. It sees what the checker does not: grain and woven patterns.
    """
    return _rms(*_background(images))


def _rms(off: Tensor, free: Tensor) -> Tensor:
    square = off.square().mean(1, keepdim=True) * free
    return (square.sum((1, 2, 3)) / free.sum((1, 2, 3)).clamp(min=1)).sqrt()


def _patch_energy(off: Float[Tensor, "b 3 h w"], free: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Mean square of what repeats in the background with the period of the model's patches, in units of [0, 1]^2.

    Averaging over patches keeps, of a spectrum, the multiples of the patch frequency; their mean is taken out. Where an
    object covers a pixel of a patch, the other patches speak for it.
    """

    def folded(values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        patches = values.unflatten(3, (width // PATCH, PATCH)).unflatten(2, (height // PATCH, PATCH))
        return patches.sum((2, 4))

    mean = folded(off * free) / folded(free).clamp(min=1)
    return (mean - mean.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
