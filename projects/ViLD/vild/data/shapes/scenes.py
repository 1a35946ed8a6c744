"""Draw one image of ``shapes``: clutter, overlapping objects, photographic noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vild.data.shapes.categories import COLOURS, Composition
from vild.data.shapes.outlines import OUTLINES, coverage, place

SIZE = 160  # pixels per side
MIN_OBJECTS, MAX_OBJECTS = 3, 8
MIN_EXTENT, MAX_EXTENT = 20, 52  # pixels, before rotation
MAX_TURN = 20  # degrees
MAX_OVERLAP = 0.35  # of the smaller object's area, per pair
MIN_VISIBLE = 0.4  # objects less visible than this are not annotated
_PLACEMENT_TRIES = 25

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Attributes:
        index: index of its composition.
        mask: (SIZE, SIZE) bool, the visible part.
        visible: visible fraction of its area.
    """

    index: int
    mask: Mask
    visible: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Box x0, y0, x1, y1 around the visible part, in pixels."""
        rows, columns = np.nonzero(self.mask.any(axis=1))[0], np.nonzero(self.mask.any(axis=0))[0]
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw_scene(
    rng: np.random.RandomState,
    compositions: Sequence[Composition],
    cumulative: npt.NDArray[np.float64],
) -> tuple[Image, list[SceneObject]]:
    """Draw an image.

    Args:
        rng: source of all randomness. RandomState's streams never change between numpy versions.
        compositions: the possible objects.
        cumulative: cumulative probabilities of ``compositions``, the last one 1.

    Returns:
        the image, (SIZE, SIZE, 3) uint8 RGB, and its objects.
    """
    canvas = _background(rng)
    masks: list[Mask] = []
    areas: list[int] = []
    indices: list[int] = []
    for _ in range(rng.randint(MIN_OBJECTS, MAX_OBJECTS + 1)):
        index = int(np.searchsorted(cumulative, rng.random_sample(), side="right"))
        index = min(index, len(compositions) - 1)
        placed = _place_object(rng, compositions[index], masks, areas)
        if placed is None:  # no room
            continue
        cover, colours = placed
        canvas += cover[:, :, None] * (colours - canvas)
        mask = cover >= 0.5
        for before in masks:
            before &= ~mask
        masks.append(mask)
        areas.append(int(mask.sum()))
        indices.append(index)
    objects = [
        SceneObject(index, mask, float(mask.sum()) / area)
        for index, mask, area in zip(indices, masks, areas, strict=True)
        if mask.any()
    ]
    return _photograph(rng, canvas), objects


def _place_object(
    rng: np.random.RandomState, composition: Composition, masks: list[Mask], areas: list[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Return coverage (SIZE, SIZE) and colours (SIZE, SIZE, 3) of a new object; None if no room."""
    # squared, so that small objects are more frequent than large ones
    extent = MIN_EXTENT + (MAX_EXTENT - MIN_EXTENT) * rng.random_sample() ** 2
    half = extent / 2
    degrees = rng.randint(-MAX_TURN, MAX_TURN + 1)
    for _ in range(_PLACEMENT_TRIES):
        x, y = half + (SIZE - extent) * rng.random_sample(2)
        vertices = place(OUTLINES[composition.shape], (x, y), half, degrees)
        low = np.floor(vertices.min(axis=0)).astype(int).clip(0, SIZE)
        high = np.ceil(vertices.max(axis=0)).astype(int).clip(0, SIZE)
        width, height = high - low
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        patch = coverage(vertices - low, int(height), int(width))
        solid = patch >= 0.5
        area = int(solid.sum())
        overlaps = [
            int((solid & mask[window]).sum()) / min(area, before)
            for mask, before in zip(masks, areas, strict=True)
        ]
        if area and max(overlaps, default=0.0) <= MAX_OVERLAP:
            cover = np.zeros((SIZE, SIZE))
            cover[window] = patch
            colours = np.zeros((SIZE, SIZE, 3))
            local = (x - low[0], y - low[1])
            colours[window] = _paint(rng, composition, patch.shape, local, extent, degrees)
            return cover, colours
    return None


def _paint(
    rng: np.random.RandomState,
    composition: Composition,
    shape: tuple[int, ...],
    centre: tuple[float, float],
    extent: float,
    degrees: int,
) -> npt.NDArray[np.float64]:
    """Return colours (h, w, 3) of an object's patch: its pattern in two tones of its colour."""
    tone = np.array(COLOURS[composition.colour], np.float64)
    tone = tone * (0.8 + 0.3 * rng.random_sample())
    other = tone * 0.3
    axes = place(((1.0, 0.0), (0.0, 1.0)), (0.0, 0.0), 1.0, degrees)
    rows, columns = np.indices(shape, dtype=np.float64)
    dx, dy = columns + 0.5 - centre[0], rows + 0.5 - centre[1]
    u = dx * axes[0, 0] + dy * axes[0, 1]
    v = dx * axes[1, 0] + dy * axes[1, 1]
    cell = max(3.0, extent / 7)
    phase = rng.random_sample(2) * cell
    a, b = (u + phase[0]) / cell, (v + phase[1]) / cell
    if composition.pattern == "striped":
        first = np.floor(b) % 2 == 0
    elif composition.pattern == "checkered":
        first = (np.floor(a) + np.floor(b)) % 2 == 0
    elif composition.pattern == "dotted":
        spacing = 1.7
        fa = a / spacing - np.floor(a / spacing) - 0.5
        fb = b / spacing - np.floor(b / spacing) - 0.5
        first = fa * fa + fb * fb > 0.08
    else:
        first = np.ones(shape, bool)
    return np.where(first[:, :, None], tone, other)


def _background(rng: np.random.RandomState) -> npt.NDArray[np.float64]:
    """Draw coloured noise of two scales and lines as clutter; (SIZE, SIZE, 3) in [0, 255]."""
    base = 60 + 120 * rng.random_sample(3)
    canvas = np.zeros((SIZE, SIZE, 3)) + base
    for cells, strength in ((5, 70.0), (20, 45.0)):
        grid = (rng.random_sample((cells + 1, cells + 1, 3)) - 0.5) * strength
        canvas += _enlarge(grid, SIZE)
    for _ in range(rng.randint(8, 20)):
        x0, y0, x1, y1 = (int(v) for v in rng.randint(-20, SIZE + 20, 4))
        colour = 255 * rng.random_sample(3)
        thick = int(rng.randint(1, 3))
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        k = np.arange(steps + 1)
        xs = (2 * (x0 * (steps - k) + x1 * k) + steps) // (2 * steps)
        ys = (2 * (y0 * (steps - k) + y1 * k) + steps) // (2 * steps)
        for shift in range(thick):
            inside = (xs >= 0) & (xs < SIZE) & (ys + shift >= 0) & (ys + shift < SIZE)
            canvas[ys[inside] + shift, xs[inside]] = colour
    return canvas


def _enlarge(grid: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Enlarge (c + 1, c + 1, 3) bilinearly to (size, size, 3)."""
    cells = grid.shape[0] - 1
    position = (np.arange(size) + 0.5) * cells / size
    low = np.floor(position).astype(int).clip(0, cells - 1)
    share = (position - low)[:, None]
    rows = grid[low] * (1 - share[:, :, None]) + grid[low + 1] * share[:, :, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _photograph(rng: np.random.RandomState, canvas: npt.NDArray[np.float64]) -> Image:
    """Apply contrast, colour cast, brightness and noise, and convert to 8 bits."""
    gain = (0.75 + 0.45 * rng.random_sample()) * (0.92 + 0.16 * rng.random_sample(3))
    offset = 50 * (rng.random_sample() - 0.5)
    amplitude = int(rng.randint(3, 15))
    noise = rng.randint(-amplitude, amplitude + 1, canvas.shape)
    values = (canvas - 128) * gain + 128 + offset + noise
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8)
