"""Outlines of the shapes, and their rasterisation with exact, portable arithmetic.

Only additions, multiplications, divisions and comparisons of doubles are used on rounded inputs, so
every machine draws the same pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Polygon = tuple[tuple[float, float], ...]
SUBSAMPLES = 3  # samples per pixel along each axis


def _polar(points: list[tuple[float, float]]) -> Polygon:
    """Return vertices from (degrees, radius); rounded, since cos differs by machine."""
    return tuple(
        (round(r * math.cos(math.radians(a)), 6), round(r * math.sin(math.radians(a)), 6))
        for a, r in points
    )


def _crescent() -> Polygon:
    """Return the unit disc minus a disc of radius 0.75 around (0.5, 0)."""
    shift, radius = 0.5, 0.75
    x = (1 - radius**2 + shift**2) / (2 * shift)  # x coordinate where the two circles intersect
    outer = math.degrees(math.acos(x))
    inner = math.degrees(math.acos((x - shift) / radius))
    points = []
    for k in range(25):
        angle = math.radians(outer + (360 - 2 * outer) * k / 24)
        points.append((math.cos(angle), math.sin(angle)))
    for k in range(1, 16):
        angle = math.radians(360 - inner - (360 - 2 * inner) * k / 16)
        points.append((shift + radius * math.cos(angle), radius * math.sin(angle)))
    return tuple((round(x + 0.15, 6), round(y, 6)) for x, y in points)


def _heart() -> Polygon:
    points = []
    for a in range(0, 360, 10):
        t = math.radians(a)
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        points.append((round(x / 17, 6), round((y - 2.5) / 17 + 0.15, 6)))
    return tuple(points)


# In units of half the size; y points down.
OUTLINES: dict[str, Polygon] = {
    "circle": _polar([(a, 0.95) for a in range(0, 360, 10)]),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _polar([(a, 1.0) for a in (-90, 30, 150)]),
    "star": _polar([(-90 + 36 * i, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]),
    "cross": (
        *((-0.33, -0.95), (0.33, -0.95), (0.33, -0.33), (0.95, -0.33), (0.95, 0.33), (0.33, 0.33)),
        *((0.33, 0.95), (-0.33, 0.95), (-0.33, 0.33), (-0.95, 0.33), (-0.95, -0.33)),
        (-0.33, -0.33),
    ),
    "arrow": (
        *((0.0, -1.0), (0.85, -0.05), (0.36, -0.05), (0.36, 0.95), (-0.36, 0.95)),
        *((-0.36, -0.05), (-0.85, -0.05)),
    ),
    "crescent": _crescent(),
    "heart": _heart(),
    "bolt": (
        *((0.15, -1.0), (-0.72, 0.18), (-0.08, 0.18), (-0.3, 1.0), (0.72, -0.3)),
        *((0.1, -0.3), (0.55, -1.0)),
    ),
    "hourglass": (
        (-0.8, -0.95),
        (0.8, -0.95),
        (0.16, 0.0),
        (0.8, 0.95),
        (-0.8, 0.95),
        (-0.16, 0.0),
    ),
}


def place(
    outline: Polygon, centre: tuple[float, float], half: float, degrees: int
) -> npt.NDArray[np.float64]:
    """Return pixel vertices (V, 2) of an outline of half-size ``half``, turned by ``degrees``."""
    cos = round(math.cos(math.radians(degrees)), 6)
    sin = round(math.sin(math.radians(degrees)), 6)
    points = np.array(outline)
    x = points[:, 0] * cos - points[:, 1] * sin
    y = points[:, 0] * sin + points[:, 1] * cos
    return np.stack([centre[0] + half * x, centre[1] + half * y], axis=1)


def coverage(vertices: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the fraction of each pixel that a polygon covers, by the even-odd rule.

    Args:
        vertices: (V, 2) x, y in pixels; pixel (i, j) is the square [j, j + 1) × [i, i + 1).
        height: rows of the raster.
        width: columns of the raster.

    Returns:
        (height, width) in [0, 1], in steps of 1 / SUBSAMPLES².
    """
    rows, columns = height * SUBSAMPLES, width * SUBSAMPLES
    y = (np.arange(rows) + 0.5) / SUBSAMPLES  # sample lines
    x0, y0 = vertices[:, 0], vertices[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # (rows, V): which edges each sample line crosses, and where
    crosses = (y0[None] <= y[:, None]) != (y1[None] <= y[:, None])
    line, edge = np.nonzero(crosses)
    x = x0[edge] + (y[line] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    # first sample column to the right of the crossing; inside and outside swap from there on
    first = np.ceil(x * SUBSAMPLES - 0.5).clip(0, columns).astype(np.int64)
    toggles = np.zeros((rows, columns + 1), np.int64)
    np.add.at(toggles, (line, first), 1)
    inside = np.cumsum(toggles[:, :columns], axis=1) % 2
    blocks = inside.reshape(height, SUBSAMPLES, width, SUBSAMPLES)
    return blocks.sum(axis=(1, 3)) / SUBSAMPLES**2
