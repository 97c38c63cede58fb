"""Sizes of about equal area, and which one an image goes to."""

import math
from collections.abc import Sequence

Size = tuple[int, int]  # width, height


def sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """Sizes with sides divisible by ``step``, at most ``resolution``^2 in area, no side over twice the resolution."""
    wide = [(width, resolution**2 // width // step * step) for width in range(step, 2 * resolution + 1, step)]
    found = {size for size in wide if step <= size[1] <= 2 * resolution}
    return tuple(sorted(found | {(high, width) for width, high in found}))


def nearest(size: Size, among: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to that of ``size``; of equal ones the largest."""
    aspect = math.log(size[0] / size[1])
    return min(among, key=lambda other: (round(abs(math.log(other[0] / other[1]) - aspect), 9), -math.prod(other)))
