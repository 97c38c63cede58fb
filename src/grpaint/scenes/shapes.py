"""Colours and outlines that the renderer and the checker share.

A shape is described by its centre (the centroid of its area) and the radius of the disc of equal area, in pixels. The
y axis points down; the centre of the first pixel is (0.5, 0.5).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpaint.scenes.captions import SHAPES

SIDE = 32
BACKGROUND = (0.12, 0.12, 0.14)
PALETTE = torch.tensor(
    [
        (0.90, 0.15, 0.15),  # red
        (1.00, 0.55, 0.10),  # orange
        (0.95, 0.90, 0.20),  # yellow
        (0.20, 0.75, 0.25),  # green
        (0.20, 0.85, 0.90),  # cyan
        (0.20, 0.35, 0.95),  # blue
        (0.65, 0.25, 0.85),  # purple
        (0.95, 0.95, 0.95),  # white
    ]
)

# measures for radius 1
_SQUARE = math.sqrt(math.pi) / 2  # half a side
_TRIANGLE = math.sqrt(math.pi / math.sqrt(27))  # from the centroid to an edge; the apex is twice as far
_CROSS = math.sqrt(math.pi / 5)  # the width of a bar; a bar is three widths long
# extent of each shape from its centre, for radius 1: left and right, up, down
REACH = torch.tensor(
    [
        (1.0, 1.0, 1.0),
        (_SQUARE, _SQUARE, _SQUARE),
        (_TRIANGLE * math.sqrt(3), 2 * _TRIANGLE, _TRIANGLE),
        (1.5 * _CROSS, 1.5 * _CROSS, 1.5 * _CROSS),
    ]
)


def pixel_centres(side: int = SIDE) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Return the x and y coordinates of every pixel's centre."""
    line = torch.arange(side) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def outlines(
    x: Float[Tensor, "*n h w"], y: Float[Tensor, "*n h w"], radius: Float[Tensor, "*n 1 1"]
) -> Float[Tensor, "*n shapes h w"]:
    """Return the signed distances (negative inside) to all four shapes at the origin, in the order of ``SHAPES``."""
    circle = (x * x + y * y).sqrt() - radius
    ax, ay = x.abs(), y.abs()
    square = torch.maximum(ax, ay) - _SQUARE * radius
    slanted = ax * (math.sqrt(3) / 2) - y / 2
    triangle = torch.maximum(y, slanted) - _TRIANGLE * radius
    half, long = 0.5 * _CROSS * radius, 1.5 * _CROSS * radius
    cross = torch.minimum(torch.maximum(ax - long, ay - half), torch.maximum(ax - half, ay - long))
    return torch.stack([circle, square, triangle, cross], -3)


def coverage(distance: Tensor) -> Tensor:
    """Return the share of each pixel that a shape covers, from the signed distance at the pixel's centre.

    This is anti-aliasing over one pixel: it falls linearly from 1 half a pixel inside to 0 half a pixel outside.
    """
    return (0.5 - distance).clamp(0, 1)


def shape_coverage(
    shape: Int[Tensor, " n"],
    cx: Float[Tensor, " n"],
    cy: Float[Tensor, " n"],
    radius: Float[Tensor, " n"],
    side: int = SIDE,
) -> Float[Tensor, "n h w"]:
    """Draw the coverage of ``n`` objects, each on an image of its own with ``side`` pixels a side."""
    x, y = pixel_centres(side)
    distances = outlines(x - cx[:, None, None], y - cy[:, None, None], radius[:, None, None])
    return coverage(distances[torch.arange(len(shape)), shape])


assert len(REACH) == len(SHAPES)
