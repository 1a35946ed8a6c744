"""Exact polygons of a mask: edges run between pixels, so rasterising restores the mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Point = tuple[int, int]


def mask_to_polygons(mask: npt.NDArray[np.bool_]) -> list[list[float]]:
    """Return the outlines of the regions of ``mask`` in COCO's form.

    Args:
        mask: (H, W) bool.

    Returns:
        one flat list x0, y0, x1, y1, … per region (4-connected), corners only, in pixels. Holes
        are dropped: COCO's polygons cannot represent them.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    # Pixel edges between inside and outside, directed so that the inside is on the right (image
    # coordinates, y down): outlines run clockwise, holes counter-clockwise.
    following: dict[Point, list[Point]] = {}
    for axis in (0, 1):
        delta = np.diff(padded, axis=axis)
        for sign in (1, -1):
            for i, j in np.argwhere(delta == sign).tolist():
                edge = ((j - 1, i), (j, i)) if axis == 0 else ((j, i), (j, i - 1))
                start, end = edge[::sign]
                following.setdefault(start, []).append(end)

    polygons = []
    while following:
        start = next(iter(following))
        loop = [start]
        heading = (0, 0)
        while True:
            point = _take_next(following, loop[-1], heading)
            heading = (point[0] - loop[-1][0], point[1] - loop[-1][1])
            if point == start:
                break
            loop.append(point)
        if _signed_area(loop) > 0:
            polygons.append([float(v) for point in _corners(loop) for v in point])
    return polygons


def _take_next(following: dict[Point, list[Point]], point: Point, heading: Point) -> Point:
    ends = following[point]
    # where two regions touch at a corner, turn right to keep them separate (4-connectivity)
    right = (point[0] - heading[1], point[1] + heading[0])
    chosen = right if right in ends else ends[0]
    ends.remove(chosen)
    if not ends:
        del following[point]
    return chosen


def _signed_area(loop: list[Point]) -> float:
    points = np.array(loop)
    x, y = points[:, 0], points[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _corners(loop: list[Point]) -> list[Point]:
    neighbours = zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
    return [
        point
        for (x0, y0), point, (x1, y1) in neighbours
        if (point[0] - x0, point[1] - y0) != (x1 - point[0], y1 - point[1])
    ]
