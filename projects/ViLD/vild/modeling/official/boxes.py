"""Boxes whose last pixel is inside, as the official code has them (its utils/box_utils.py).

A box of Detectron2 is (x1, y1, x2, y2) with a width of x2 - x1; the official one, inclusive, has a
width of x2 - x1 + 1, so that the two differ by 1 in x2 and y2. Its coding of boxes is then that of
Detectron2's Box2BoxTransform. Its clipping, its suppression and its crops of regions take inclusive
coordinates as they are: for these alone boxes are converted, and back.
"""

from __future__ import annotations

from torch import Tensor


def to_inclusive(boxes: Tensor) -> Tensor:
    """(..., 4) of Detectron2 to inclusive ones. A side is the length in pixels - 1, so above -1."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def from_inclusive(boxes: Tensor) -> Tensor:
    """(..., 4) inclusive to Detectron2's."""
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def is_zero(boxes: Tensor) -> Tensor:
    """(...) bool: which inclusive boxes (..., 4) have no positive coordinate.

    The official suppression sets a box to zeros to drop it, so it drops these, too.
    """
    return (boxes <= 0).all(dim=-1)


def last_pixel(image_size: tuple[int, int]) -> tuple[int, int]:
    """(y, x) that inclusive boxes are clipped to, for an image of (height, width) pixels."""
    height, width = image_size
    return height - 1, width - 1
