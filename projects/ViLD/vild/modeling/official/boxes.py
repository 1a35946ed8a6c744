"""Inclusive boxes, whose last pixel is inside, as in the official code (utils/box_utils.py).

A Detectron2 box (x1, y1, x2, y2) has the width x2 - x1; an inclusive box has the width
x2 - x1 + 1, so the two differ by 1 in x2 and y2. With this conversion the official box encoding is
that of Detectron2's Box2BoxTransform. Clipping, NMS and region crops of the official code work on
inclusive coordinates, so boxes are converted for these steps and back.
"""

from __future__ import annotations

from torch import Tensor


def to_inclusive(boxes: Tensor) -> Tensor:
    """Convert Detectron2 boxes (..., 4) to inclusive ones, whose x2 - x1 is the width - 1."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def from_inclusive(boxes: Tensor) -> Tensor:
    """Convert inclusive boxes (..., 4) to Detectron2 boxes."""
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def is_zero(boxes: Tensor) -> Tensor:
    """Return which inclusive boxes (..., 4) have no positive coordinate, as (...) bool.

    The official NMS sets dropped boxes to zeros, so it drops these boxes too.
    """
    return (boxes <= 0).all(dim=-1)


def last_pixel(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the (y, x) to which inclusive boxes are clipped, for an image of (height, width)."""
    height, width = image_size
    return height - 1, width - 1
