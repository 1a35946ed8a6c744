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
    down = np.diff(padded, axis=0)  # rows i-1 -> i of the padded mask
    right = np.diff(padded, axis=1)
    for sign, delta in ((1, down), (-1, down)):
        for i, j in zip(*np.nonzero(delta == sign), strict=True):
            start, end = (int(j) - 1, int(i)), (int(j), int(i))
            if sign == -1:
                start, end = end, start
            following.setdefault(start, []).append(end)
    for sign, delta in ((1, right), (-1, right)):
        for i, j in zip(*np.nonzero(delta == sign), strict=True):
            start, end = (int(j), int(i)), (int(j), int(i) - 1)
            if sign == -1:
                start, end = end, start
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
    kept = []
    for before, point, after in zip(
        [loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True
    ):
        straight = (point[0] - before[0], point[1] - before[1]) == (
            after[0] - point[0],
            after[1] - point[1],
        )
        if not straight:
            kept.append(point)
    return kept
