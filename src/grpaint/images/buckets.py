"""Image sizes of about equal area (buckets), and the choice of one for an image."""

import math
from collections.abc import Sequence

Size = tuple[int, int]  # width and height in pixels


def sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """List the sizes with sides divisible by ``step`` and about ``resolution``^2 in area, in ascending order.

    For each side, the other one is the longest that keeps the area at most ``resolution``^2. No side is longer than
    twice the resolution.
    """
    by_width = [(width, resolution**2 // width // step * step) for width in range(step, 2 * resolution + 1, step)]
    allowed_sizes = {size for size in by_width if step <= size[1] <= 2 * resolution}
    return tuple(sorted(allowed_sizes | {(height, width) for width, height in allowed_sizes}))


def nearest(size: Size, candidates: Sequence[Size]) -> Size:
    """Return the candidate whose aspect ratio is nearest to that of ``size``; of equally near ones the largest."""
    aspect = math.log(size[0] / size[1])
    return min(candidates, key=lambda other: (round(abs(math.log(other[0] / other[1]) - aspect), 9), -math.prod(other)))
