"""Check whether an image shows what its caption describes: exactly for drawn scenes, by degrees for images near them.

Each pixel is read as background with some coverage of the nearest colour. Covered pixels of one colour that touch form
a component. Its shape is the one whose template, drawn with the area and the centroid of the component, overlaps best.
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

from grpaint.scenes.captions import COLOURS, MAX_OBJECTS, SHAPES, Caption
from grpaint.scenes.shapes import BACKGROUND, PALETTE, SIDE, coverage, outlines, pixel_centres

MAX_COMPONENTS = 6  # only so many components of an image are compared with its caption, the largest first
MIN_AREA = 4  # pixels; a smaller component is dirt, not an object
SHAPE_OVERLAP = 0.72  # soft intersection over union that a shape must reach
SMALL_BELOW, LARGE_ABOVE = 3.7, 4.7  # radius of the disc of equal area, in pixels
PATCH = 8  # side of a patch of the built-in model, in pixels
MIN_OFFSET = 1.5  # pixels by which an object must lie to the named side


@dataclass(frozen=True)
class Verdict:
    """The checker's measures of ``b`` images.

    ``strict``: 1 if every constraint of the caption holds, else 0. ``soft``: the degree to which they hold, in [0, 1];
    1 if strict is. ``background`` and ``patch_energy``: see :func:`background` and :func:`_patch_energy`; lower is
    better.
    """

    strict: Float[Tensor, " b"]
    soft: Float[Tensor, " b"]
    background: Float[Tensor, " b"]
    patch_energy: Float[Tensor, " b"]


@dataclass(frozen=True)
class Components:
    """The ``MAX_COMPONENTS`` largest components of ``b`` images.

    ``radius``: of the disc of equal area, in pixels; 0 in the places of an image with fewer components. ``x``, ``y``:
    the centroid, in pixels. ``overlap``: soft intersection over union with each shape's template. ``total``: how many
    components the image has.
    """

    colour: Int[Tensor, "b n"]
    radius: Float[Tensor, "b n"]
    x: Float[Tensor, "b n"]
    y: Float[Tensor, "b n"]
    overlap: Float[Tensor, "b n shapes"]
    total: Float[Tensor, " b"]


def _read_colours(images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
    """Return each pixel's nearest background-to-colour line ``[b, h, w]``, and the coverages ``[b, colours, h, w]``."""
    lines = PALETTE - torch.tensor(BACKGROUND)
    offset = images - torch.tensor(BACKGROUND)[:, None, None]
    along = torch.einsum("bchw,nc->bnhw", offset, lines) / lines.square().sum(1)[:, None, None]
    along = along.clamp(0, 1)
    distance = along.square() * lines.square().sum(1)[:, None, None]
    distance = distance - 2 * along * torch.einsum("bchw,nc->bnhw", offset, lines)
    return distance.argmin(1), along


def _label(colour: Int[Tensor, "b h w"], covered: Tensor) -> Int[Tensor, "b pixels"]:
    """Label each component of touching pixels of one colour by its largest pixel number (from 1); 0 outside."""
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
        # pointer jumping: take over the label of the pixel that the label names, so that fewer rounds are needed
        flat = torch.where(flat > 0, flat.gather(1, (flat - 1).clamp(min=0)), 0)
        numbers = flat.view_as(grown)
        if torch.equal(numbers, before):
            return flat


def find_components(images: Float[Tensor, "b 3 h w"]) -> Components:
    """Find the components of images in [0, 1]."""
    colour, along = _read_colours(images)
    covered = along.gather(1, colour[:, None])[:, 0] > 0.5
    labels = _label(colour, covered)
    area = torch.zeros(len(images), SIDE * SIDE + 1).scatter_add_(1, labels, torch.ones(labels.shape))[:, 1:]
    area = torch.where(area >= MIN_AREA, area, 0)
    size, root = area.topk(MAX_COMPONENTS)
    row, slot = (size > 0).nonzero(as_tuple=True)
    seed = root[row, slot]
    hue = colour.flatten(1)[row, seed]
    mask = (labels[row] == (seed + 1)[:, None]).view(-1, 1, SIDE, SIDE)
    near = F.max_pool2d(mask.float(), 3, 1, 1)[:, 0]  # one pixel more, for the anti-aliased edge of the object
    cover = along[row, hue] * near
    mass = cover.sum((1, 2)).clamp(min=1e-6)
    px, py = pixel_centres()
    x, y = (cover * px).sum((1, 2)) / mass, (cover * py).sum((1, 2)) / mass
    radius = (mass / math.pi).sqrt()
    templates = coverage(outlines(px - x[:, None, None], py - y[:, None, None], radius[:, None, None]))
    both = torch.minimum(templates, cover[:, None]).sum((2, 3))
    overlap = both / (mass[:, None] + templates.sum((2, 3)) - both)

    def table(values: Tensor) -> Tensor:
        out = torch.zeros(len(images), MAX_COMPONENTS, *values.shape[1:], dtype=values.dtype)
        out[row, slot] = values
        return out

    return Components(table(hue), table(radius), table(x), table(y), table(overlap), (area > 0).sum(1).float())


@cache
def _assignments() -> Int[Tensor, "n objects"]:
    """List all ways to assign a component to each object."""
    return torch.tensor(list(itertools.permutations(range(MAX_COMPONENTS), MAX_OBJECTS)))


@dataclass(frozen=True)
class _Targets:
    """The objects of ``b`` captions as tables ``[b, MAX_OBJECTS]``."""

    shape: Tensor
    colour: Tensor
    size: Tensor  # -1 small, 1 large, 0 not named
    owner: Tensor  # number of the object's thing in the caption, -1 in an empty place
    axis: Tensor  # [b, 2]: the direction from the first thing to the second, 0 if the caption names no relation


_DIRECTION = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1), "": (0, 0)}
_SIZE = {"small": -1, "": 0, "large": 1}


def _targets(captions: Sequence[Caption]) -> _Targets:
    rows = []
    for caption in captions:
        slots = [
            (SHAPES.index(thing.shape), COLOURS.index(thing.colour), _SIZE[thing.size], number)
            for number, thing in enumerate(caption.things)
            for _ in range(thing.count)
        ]
        rows.append(slots + [(0, 0, 0, -1)] * (MAX_OBJECTS - len(slots)))
    shape, colour, size, owner = torch.tensor(rows).unbind(-1)
    return _Targets(
        shape, colour, size, owner, torch.tensor([_DIRECTION[c.relation] for c in captions], dtype=torch.float)
    )


def _size_fits(size: Tensor, radius: Tensor, slack: float) -> Tensor:
    """Return 1 if a size word holds, falling to 0 over ``slack`` pixels of radius; 1 if no size is named."""
    excess = torch.where(size < 0, radius - SMALL_BELOW, LARGE_ABOVE - radius)
    return torch.where(size == 0, 1.0, (1 - excess / slack).clamp(0, 1) if slack else (excess < 0).float())


def _side_offset(components: Components, targets: _Targets, pick: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the relation: pixels by which the worst object lies to the named side, and whether that axis dominates.

    ``pick`` ``[b, MAX_OBJECTS]``: the component assigned to each object. The axis dominates if the offset between the
    centres of the two things is at least as large along it as across.
    """
    centroid = torch.stack([components.x.gather(1, pick), components.y.gather(1, pick)], -1)
    along = (centroid * targets.axis[:, None]).sum(-1)
    first, second = targets.owner == 0, targets.owner == 1
    last = along.masked_fill(~first, -math.inf).amax(1)
    distance = along.masked_fill(~second, math.inf).amin(1) - last

    def centre(mask: Tensor) -> Tensor:
        return (centroid * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    offset = centre(second) - centre(first)
    straight = (offset * targets.axis).sum(1) >= (offset * targets.axis.flip(1)).sum(1).abs()
    return distance, straight


def check(images: Float[Tensor, "b 3 h w"], captions: Sequence[Caption]) -> Verdict:
    """Check images ``[b, 3, 32, 32]`` in [0, 1] against their captions; each row of the verdict is for one image."""
    images = images.detach().float().cpu()
    components, targets = find_components(images), _targets(captions)
    is_object = targets.owner >= 0
    exists = (components.radius > 0)[:, None]
    # [b, objects, components]: how well each component matches each object
    shape = targets.shape[..., None]
    overlap = components.overlap.permute(0, 2, 1).gather(1, shape.expand(-1, -1, MAX_COMPONENTS))
    best = components.overlap.argmax(-1)[:, None] == shape
    hue = components.colour[:, None] == targets.colour[..., None]
    size, radius = targets.size[..., None], components.radius[:, None]
    exact = exists & hue & best & (overlap > SHAPE_OVERLAP) & (_size_fits(size, radius, 0) > 0)
    likeness = ((overlap - 0.5) / 0.45).clamp(0, 1) * torch.where(best, 1.0, 0.6)
    graded = exists * (0.2 + 0.4 * hue) * (0.5 + 0.5 * likeness) + exists * hue * 0.4 * likeness
    graded = graded * (0.5 + 0.5 * _size_fits(size, radius, 2.0))
    assignments = _assignments()
    totals = graded.new_zeros(len(images), len(assignments))
    for n in range(MAX_OBJECTS):
        totals += (graded[:, n] * is_object[:, n, None])[:, assignments[:, n]]
    pick = assignments[totals.argmax(1)]
    number = is_object.sum(1)
    object_scores = graded.gather(2, pick[..., None])[..., 0] * is_object
    all_exact = (exact.gather(2, pick[..., None])[..., 0] | ~is_object).all(1)

    related = targets.axis.abs().sum(1) > 0
    distance, straight = _side_offset(components, targets, pick)
    complete = (components.radius.gather(1, pick) > 0) | ~is_object
    side = torch.where(complete.all(1), torch.sigmoid((distance.clamp(-32, 32) - MIN_OFFSET) / 3), 0.0)
    holds = ~related | ((distance > MIN_OFFSET) & straight)
    extra = (components.total - number).clamp(min=0)
    clean = 1 / (1 + extra)
    score = object_scores.sum(1) / number
    weight = 1 + 0.35 * related
    soft = (score * (0.7 + 0.3 * clean) + 0.35 * related * side * (0.5 + 0.5 * straight)) / weight
    strict = all_exact & holds & (extra == 0)
    # soft is 1 if strict is: else differences between correct images would give their group a spread to learn from
    soft = torch.where(strict, 1.0, soft.clamp(0, 1))
    deviation, free = _background(images)
    return Verdict(strict.float(), soft, _rms(deviation, free), _patch_energy(deviation, free))


def _background(images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Return each pixel's deviation from the true background colour, and 1 for pixels that count as background.

    These lie at least two pixels away from any covered one; the others are 0.
    """
    colour, along = _read_colours(images)
    covered = along.gather(1, colour[:, None]) > 0.5
    return images - torch.tensor(BACKGROUND)[:, None, None], 1 - F.max_pool2d(covered.float(), 5, 1, 2)


def background(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the root-mean-square deviation of background pixels from the true background colour, in units of [0, 1].

    Only pixels at least two away from any covered one count. This measures grain and woven patterns, which ``strict``
    and ``soft`` do not see.
    """
    return _rms(*_background(images))


def _rms(deviation: Tensor, free: Tensor) -> Tensor:
    square = deviation.square().mean(1, keepdim=True) * free
    return (square.sum((1, 2, 3)) / free.sum((1, 2, 3)).clamp(min=1)).sqrt()


def _patch_energy(deviation: Float[Tensor, "b 3 h w"], free: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Return the mean square of the background pattern that repeats in every patch of the model, in units of [0, 1]^2.

    The deviation is averaged over the patches, which leaves the multiples of the patch frequency in its spectrum; then
    the mean over the pixels of a patch is subtracted. A pixel that an object covers in one patch is averaged over the
    others.
    """

    def folded(values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        patches = values.unflatten(3, (width // PATCH, PATCH)).unflatten(2, (height // PATCH, PATCH))
        return patches.sum((2, 4))

    mean = folded(deviation * free) / folded(free).clamp(min=1)
    return (mean - mean.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
