"""Detectron2's resizing and cropping for images of any shape, without shapely.

Detectron2 rounds the sides of resized or cropped images, so very thin images end up 0 pixels wide.
It crops polygons with shapely, which neither Detectron2 nor this project installs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, PolygonMasks


class Crop(T.CropTransform):
    """Crop an image; polygons are translated but not clipped.

    Clipping is unnecessary: masks are rasterised within boxes, and boxes are clipped to the image.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Translate polygons (P, 2) of x and y."""
        return [self.apply_coords(polygon) for polygon in polygons]


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's transform with results of at least 1 pixel per side."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the output size for an image (H, W, C)."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform


class RandomCrop(T.RandomCrop):
    """Detectron2's transform with results of at least 1 pixel per side; uses :class:`Crop`."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw (height, width) of the crop for an image of (height, width)."""
        height, width = super().get_crop_size(image_size)
        return max(1, height), max(1, width)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the size and position of the crop for an image (H, W, C)."""
        crop = super().get_transform(image)
        return Crop(crop.x0, crop.y0, crop.w, crop.h)


def for_any_shape(augmentations: Sequence[T.Augmentation]) -> list[T.Augmentation]:
    """Replace Detectron2's resizing and cropping by these classes, with the same random draws."""
    replaced: list[T.Augmentation] = []
    for own in augmentations:
        if type(own) is T.ResizeShortestEdge:
            style = "range" if own.is_range else "choice"
            own = ResizeShortestEdge(own.short_edge_length, own.max_size, style, own.interp)
        elif type(own) is T.RandomCrop:
            own = RandomCrop(own.crop_type, own.crop_size)
        replaced.append(own)
    return replaced


def visible_boxes(masks: PolygonMasks, image_size: tuple[int, int]) -> Boxes:
    """Return tight boxes around the visible parts of polygons that may extend beyond the image.

    Args:
        masks: N objects, in pixels of the image.
        image_size: (height, width).

    Returns:
        N boxes; all zeros for objects outside the image.
    """
    height, width = image_size
    boxes = torch.zeros(len(masks), 4)
    for row, polygons in enumerate(masks.polygons):
        shown = [_shown(np.asarray(p).reshape(-1, 2), height, width) for p in polygons]
        points = np.concatenate(shown) if shown else np.empty((0, 2))
        if len(points):
            points = points.clip(0, (width, height))  # rounding errors
            boxes[row] = torch.from_numpy(np.concatenate([points.min(axis=0), points.max(axis=0)]))
    return Boxes(boxes)


def _shown(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return points (x, y) that span the visible part of a polygon (P, 2).

    These are the end points of its clipped edges (Liang-Barsky line clipping) and the image corners
    that lie inside the polygon.
    """
    polygon = polygon.astype(np.float64)
    if (polygon >= 0).all() and (polygon <= (width, height)).all():
        return polygon
    step = np.roll(polygon, -1, axis=0) - polygon
    first, last = np.zeros(len(polygon)), np.ones(len(polygon))
    with np.errstate(divide="ignore", invalid="ignore"):  # edges parallel to an axis
        for axis, limit in ((0, width), (1, height)):
            ends = np.stack([-polygon[:, axis], limit - polygon[:, axis]]) / step[:, axis]
            # 0 / 0 is an edge on the border: it never leaves the image
            first = np.fmax(first, ends.min(axis=0))
            last = np.fmin(last, ends.max(axis=0))
    left = first <= last
    start, step, first, last = polygon[left], step[left], first[left, None], last[left, None]
    corners = np.array([[x, y] for x in (0, width) for y in (0, height)], dtype=np.float64)
    inside = np.array([_contains(polygon, corner) for corner in corners])
    return np.concatenate([start + first * step, start + last * step, corners[inside]])


def _contains(polygon: np.ndarray, point: np.ndarray) -> bool:
    """Return whether a point is in a polygon: a ray to its right has an odd number of crossings."""
    (x, y), (x1, y1), (x2, y2) = point, polygon.T, np.roll(polygon, -1, axis=0).T
    crossing = (y1 > y) != (y2 > y)
    at = x1[crossing] + (y - y1[crossing]) * (x2 - x1)[crossing] / (y2 - y1)[crossing]
    return bool((at > x).sum() % 2)
