"""Draw captions as anti-aliased images: layouts without overlap from keyed random numbers, a batch at a time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.core.rng import Key, uniform
from grpaint.scenes.captions import COLOURS, MAX_OBJECTS, SHAPES, Caption, Thing
from grpaint.scenes.shapes import BACKGROUND, PALETTE, REACH, SIDE, shape_coverage

GAP = 2.0  # least distance between objects in pixels; half of it to the border
_TRIES = 32  # layouts drawn at once for each scene


@dataclass(frozen=True)
class Layout:
    """The objects of ``b`` scenes, padded to ``n`` = ``MAX_OBJECTS`` places; an empty place has radius 0.

    ``shape`` and ``colour`` are indices; ``radius`` (of the disc of equal area), ``x`` and ``y`` are in pixels.
    """

    shape: Int[Tensor, "b n"]
    colour: Int[Tensor, "b n"]
    radius: Float[Tensor, "b n"]
    x: Float[Tensor, "b n"]
    y: Float[Tensor, "b n"]


def radius_range(thing: Thing, objects: int) -> tuple[float, float]:
    """Return the range from which a thing's radius is drawn: of the disc of equal area, in pixels."""
    match thing.size:
        case "small":
            return 2.6, 3.1
        case "large":
            return 5.3, 5.9
    return (3.6, 4.8) if objects == 1 else (3.3, 4.3) if objects == 2 else (2.9, 3.5)


def _objects(captions: Sequence[Caption]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the shape, colour, radius bounds and owner (thing number, -1: no object) of every slot."""
    shape = torch.zeros(len(captions), MAX_OBJECTS, dtype=torch.long)
    colour, owner = torch.zeros_like(shape), torch.full_like(shape, -1)
    bounds = torch.zeros(len(captions), MAX_OBJECTS, 2)
    for row, caption in enumerate(captions):
        total = sum(thing.count for thing in caption.things)
        slot = 0
        for number, thing in enumerate(caption.things):
            end = slot + thing.count
            shape[row, slot:end] = SHAPES.index(thing.shape)
            colour[row, slot:end] = COLOURS.index(thing.colour)
            owner[row, slot:end] = number
            bounds[row, slot:end] = torch.tensor(radius_range(thing, total))
            slot = end
    return shape, colour, bounds, owner


@dataclass(frozen=True)
class _Relations:
    """The relations of ``b`` captions: whether they run along x, and which objects come first along that axis."""

    related: Bool[Tensor, " b"]
    horizontal: Bool[Tensor, " b"]
    first: Bool[Tensor, "b n"]
    second: Bool[Tensor, "b n"]

    def sides(self) -> Float[Tensor, "b 1 n xy bounds"]:
        """Return the part of the canvas in which to place each object, so that most tries put it on its side."""
        axis = torch.stack([self.horizontal, ~self.horizontal], -1)[:, None] & self.related[:, None, None]
        low = torch.where(axis & self.second[..., None], 0.4, 0.0)
        high = torch.where(axis & self.first[..., None], 0.6, 1.0)
        return torch.stack([low, high], -1)[:, None]

    def holds(self, x: Tensor, y: Tensor, box: tuple[Tensor, Tensor, Tensor]) -> Bool[Tensor, "b tries"]:
        """Return which layouts show the relation.

        In these every first object ends before every second one begins along the axis, and the offset of their centres
        is mostly along it.
        """
        wide, up, down = box
        across_x, first, second = self.horizontal[:, None, None], self.first[:, None], self.second[:, None]
        at, across = torch.where(across_x, x, y), torch.where(across_x, y, x)
        end = (at + torch.where(across_x, wide, down)).masked_fill(~first, -torch.inf).amax(2)
        start = (at - torch.where(across_x, wide, up)).masked_fill(~second, torch.inf).amin(2)

        def gap(place: Tensor) -> Tensor:
            centres = ((place * side).sum(2) / side.sum(2).clamp(min=1) for side in (second, first))
            return next(centres) - next(centres)

        return ~self.related[:, None] | ((end + GAP < start) & (gap(across).abs() < 0.8 * gap(at)))


def _relations(captions: Sequence[Caption], owner: Tensor) -> _Relations:
    names = [caption.relation for caption in captions]
    backwards = torch.tensor([name in ("right of", "below") for name in names])[:, None]
    return _Relations(
        torch.tensor([bool(name) for name in names]),
        torch.tensor([name in ("left of", "right of") for name in names]),
        owner == backwards.long(),
        owner == 1 - backwards.long(),
    )


def _apart(x: Tensor, y: Tensor, box: tuple[Tensor, Tensor, Tensor], is_object: Tensor) -> Bool[Tensor, "b tries"]:
    """Return in which layouts all objects have a distance of ``GAP`` or more."""
    wide, up, down = box
    ok = torch.ones(x.shape[:2], dtype=torch.bool)
    for i in range(MAX_OBJECTS):
        for j in range(i + 1, MAX_OBJECTS):
            beside = (x[..., i] - x[..., j]).abs() > wide[..., i] + wide[..., j] + GAP
            dy = y[..., j] - y[..., i]
            over = (dy > down[..., i] + up[..., j] + GAP) | (-dy > up[..., i] + down[..., j] + GAP)
            ok &= beside | over | ~(is_object[:, i] & is_object[:, j])[:, None]
    return ok


def lay_out(captions: Sequence[Caption], key: Key, first: int = 0) -> Layout:
    """Draw a layout for each caption; scene ``i``, counted from ``first``, depends on its caption and ``(*key, i)``.

    Raises:
        ConfigError: if none of 100 x 32 random layouts fits, for example with two large objects side by side.
    """
    shape, colour, bounds, owner = _objects(captions)
    out = Layout(shape, colour, *(torch.zeros(shape.shape) for _ in range(3)))
    remaining = list(range(len(captions)))
    for attempt in range(100):
        draws = torch.stack([uniform((*key, first + i, attempt), _TRIES * MAX_OBJECTS * 3) for i in remaining])
        u = draws.view(len(remaining), _TRIES, MAX_OBJECTS, 3)
        low, high = bounds[remaining, None, :, 0], bounds[remaining, None, :, 1]
        same_size = u[..., :1, 0].expand_as(u[..., 0]) if attempt % 2 else u[..., 0]
        radius = low + (high - low) * same_size
        reach = REACH[shape[remaining]][:, None]
        wide, up, down = (reach[..., k] * radius for k in range(3))
        relations, border = _relations([captions[i] for i in remaining], owner[remaining]), GAP / 2
        sides = relations.sides()
        at = sides[..., 0] + (sides[..., 1] - sides[..., 0]) * u[..., 1:]
        x = border + wide + at[..., 0] * (SIDE - 2 * border - 2 * wide)
        y = border + up + at[..., 1] * (SIDE - 2 * border - up - down)
        box = wide, up, down
        fits = _apart(x, y, box, owner[remaining] >= 0) & relations.holds(x, y, box)
        chosen = fits.float().argmax(1)
        row = torch.arange(len(remaining))
        is_placed = fits[row, chosen]
        scene, row, chosen = torch.tensor(remaining)[is_placed], row[is_placed], chosen[is_placed]
        out.x[scene], out.y[scene] = x[row, chosen], y[row, chosen]
        out.radius[scene] = torch.where(owner[scene] >= 0, radius[row, chosen], 0.0)
        remaining = [i for i, ok in zip(remaining, is_placed.tolist(), strict=True) if not ok]
        if not remaining:
            return out
    raise ConfigError(f'prompt "{captions[remaining[0]]}": no room for it on a canvas of {SIDE} x {SIDE} pixels.')


def draw(layout: Layout, side: int = SIDE) -> Float[Tensor, "b 3 h w"]:
    """Draw images in [0, 1] of ``side`` pixels a side; the layout's pixels are those of the world's own ``SIDE``."""
    x, y, radius = (part.flatten() * (side / SIDE) for part in (layout.x, layout.y, layout.radius))
    cover = shape_coverage(layout.shape.flatten(), x, y, radius, side).view(*layout.shape.shape, 1, side, side)
    cover = cover * (layout.radius > 0)[..., None, None, None]
    image = torch.tensor(BACKGROUND)[:, None, None].expand(len(layout.shape), 3, side, side)
    for n in range(MAX_OBJECTS):
        image = image + cover[:, n] * (PALETTE[layout.colour[:, n]][..., None, None] - image)
    return image


def render(captions: Sequence[Caption], key: Key, side: int = SIDE, first: int = 0) -> Float[Tensor, "b 3 h w"]:
    """Draw images ``[b, 3, side, side]`` in [0, 1].

    Image ``i``, counted from ``first``, depends only on its caption and ``(*key, i)``.
    """
    return draw(lay_out(captions, key, first), side)


def keyed_random(*key: int | str) -> random.Random:
    """Return a random generator whose numbers depend only on ``key``."""
    return random.Random(repr(key))
