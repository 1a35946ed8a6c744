"""Plain images and detections to draw on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from vild.data import Vocabulary

VOCABULARY = Vocabulary.from_names(["crow", "owl"], novel=["owl"])
CROW, OWL = 0, 1


def plain(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def found(
    *objects: tuple[list[float], float, int], size: tuple[int, int] = (120, 160), **fields: Any
) -> Instances:
    """Make Instances from (box, score, class)."""
    instances = Instances(size)
    boxes = torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([score for _, score, _ in objects])
    instances.pred_classes = torch.tensor([row for _, _, row in objects]).long()
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def warmth(drawn: np.ndarray) -> int:
    """Return the number of clearly warm pixels minus clearly cool ones."""
    red, blue = drawn[..., 0].astype(int), drawn[..., 2].astype(int)
    green = drawn[..., 1].astype(int)
    warm = (red > np.maximum(green, blue) + 40) | ((red > blue + 80) & (red >= green))
    cool = np.maximum(green, blue) > red + 40
    return int(warm.sum()) - int(cool.sum())
