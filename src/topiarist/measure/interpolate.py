"""Between measured points: linear in every coordinate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Point = tuple[int, ...]


def interpolate(points: Mapping[Point, float], at: Sequence[float]) -> float:
    """The value at ``at``, multilinear between the corners of the cell of the grid of ``points``; flat beyond its ends.

    Where the points are no full grid, linear in the product of the coordinates.

    Raises:
        ValueError: there are no points.

    Example:
        >>> interpolate({(1, 1): 1.0, (1, 3): 3.0, (5, 1): 5.0, (5, 3): 15.0}, (3, 2))
        6.0
    """
    if not points:
        raise ValueError("there is nothing to interpolate between")
    values = [sorted(set(column)) for column in zip(*points, strict=True)]
    if math.prod(map(len, values)) != len(points):
        sums: dict[Point, list[float]] = {}
        for point, value in points.items():
            sums.setdefault((math.prod(point),), []).append(value)
        return interpolate({p: sum(v) / len(v) for p, v in sums.items()}, (math.prod(at),))
    if not values:
        return points[()]
    low = max((v for v in values[0] if v <= at[0]), default=values[0][0])
    high = min((v for v in values[0] if v >= at[0]), default=values[0][-1])
    first, last = (interpolate({p[1:]: t for p, t in points.items() if p[0] == v}, at[1:]) for v in (low, high))
    return first if low == high else first + (last - first) * (at[0] - low) / (high - low)
