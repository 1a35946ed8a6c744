"""Placement of the labels of many boxes so that they stay legible.

All values are in output pixels: N boxes as (x1, y1, x2, y2), labels as (width, height).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GAP = 2.0  # pixels between two labels
_STEPS = 6  # how many label heights a label may move away from its box
_STEP_COST = 0.4  # per step; covering a whole box costs 1
_PLACE_COST = 0.02  # of a less preferred corner


@dataclass(frozen=True)
class LabelPlace:
    """The position of a label.

    Attributes:
        x: x of its upper left corner.
        y: y of its upper left corner.
        leader: end points (x, y) of a line from the label to its box; None if the two touch.
    """

    x: float
    y: float
    leader: tuple[tuple[float, float], tuple[float, float]] | None


def place_labels(
    boxes: np.ndarray, sizes: np.ndarray, canvas_wh: tuple[int, int]
) -> list[LabelPlace | None]:
    """Place every label so that it covers no other label and, if possible, no object.

    Labels are placed in order, so the important ones should come first.

    Args:
        boxes: (N, 4) xyxy.
        sizes: (N, 2) width and height of the labels.
        canvas_wh: width and height of the image. Labels stay inside it unless they are larger.

    Returns:
        N places; None for a label without room near its box.
    """
    boxes, sizes = np.reshape(boxes, (-1, 4)).astype(float), np.reshape(sizes, (-1, 2))
    taken = np.zeros((0, 4))
    places: list[LabelPlace | None] = []
    for index, (box, size) in enumerate(zip(boxes, sizes.astype(float), strict=True)):
        corners, costs = _candidates(box, *size)
        room = np.maximum(np.array(canvas_wh) - size, 0)
        corners = np.clip(corners, 0, room)
        rects = np.concatenate([corners, corners + size], axis=1)
        free = ~(_overlaps(rects, taken + np.array([-_GAP, -_GAP, _GAP, _GAP])) > 0).any(axis=1)
        if not free.any():
            places.append(None)
            continue
        others = np.delete(boxes, index, axis=0)
        areas = np.maximum((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]), 1)
        costs = costs + (_overlaps(rects, others) / areas).sum(axis=1)
        best = int(np.argmin(np.where(free, costs, np.inf)))
        taken = np.concatenate([taken, rects[best : best + 1]])
        places.append(
            LabelPlace(float(corners[best, 0]), float(corners[best, 1]), _leader(rects[best], box))
        )
    return places


def _candidates(box: np.ndarray, width: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Return candidate upper left corners (P, 2) and their costs (P,)."""
    x1, y1, x2, y2 = box
    places = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    if x2 - x1 > width and y2 - y1 > 2 * height:  # inside the box, if the object stays visible
        places[1:1] = [(x1, y1)]
        places += [(x1, y2 - height), (x2 - width, y1), (x2 - width, y2 - height)]
    places += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    costs = [_PLACE_COST * n for n in range(len(places))]
    middle = (x1 + x2 - width) / 2
    for step in range(1, _STEPS + 1):
        off = step * (height + _GAP)
        for x in (x1, x2 - width, middle, x2 + height, x1 - width - height):
            places += [(x, y1 - height - off), (x, y2 + off), (x, y1 + off), (x, y2 - height - off)]
            costs += [_STEP_COST * step] * 4
    return np.array(places), np.array(costs)


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the intersection areas (F, S) of two sets of boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def _leader(
    label: np.ndarray, box: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the ends of the shortest line from a label to a box; None if they touch."""
    on_label, on_box = [], []
    for low in (0, 1):
        start, end = max(label[low], box[low]), min(label[low + 2], box[low + 2])
        if start <= end:  # the intervals overlap on this axis
            middle = float(start + end) / 2
            on_label.append(middle)
            on_box.append(middle)
        elif label[low] > box[low + 2]:
            on_label.append(float(label[low]))
            on_box.append(float(box[low + 2]))
        else:
            on_label.append(float(label[low + 2]))
            on_box.append(float(box[low]))
    if max(abs(a - b) for a, b in zip(on_label, on_box, strict=True)) <= _GAP:
        return None
    return (on_label[0], on_label[1]), (on_box[0], on_box[1])
