"""How region embeddings compare with class names in the teacher's embedding space.

Shapes: R regions, K classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor


class SimilarityMeter:
    """Mean cosine similarity of each class's regions to the text embedding of every class.

    Args:
        text: (K, D) text embeddings, L2-normalised.
        novel: K flags.
    """

    def __init__(self, text: Tensor, novel: Sequence[bool]) -> None:
        if len(text) != len(novel):
            raise ValueError(f"expected a novel flag for each of {len(text)} classes: {len(novel)}")
        self.text, self.novel = text.float(), torch.tensor(novel, dtype=torch.bool)
        self.counts = torch.zeros(len(text), dtype=torch.int64)
        self._sums = torch.zeros(len(text), len(text), dtype=torch.float64)
        self._nearest_is_own = torch.zeros(len(text), dtype=torch.int64)

    def add(self, embeddings: Tensor, classes: Tensor) -> None:
        """Add regions.

        Args:
            embeddings: (R, D), L2-normalised.
            classes: (R,) int64, class of the object that each region covers.
        """
        cosines = embeddings.float() @ self.text.T
        self._sums.index_add_(0, classes, cosines.double())
        self.counts.index_add_(0, classes, torch.ones_like(classes))
        nearest = (cosines.argmax(dim=1) == classes).long()
        self._nearest_is_own.index_add_(0, classes, nearest)

    def mean(self) -> Tensor:
        """Return the means (K, K) float32: row = class of the regions, column = class of the text.

        Rows of classes without regions are NaN.
        """
        return (self._sums / self.counts[:, None]).float()

    def count(self, novel: bool) -> int:
        """Count the regions of novel or of base classes."""
        return int(self.counts[self.novel == novel].sum())

    def accuracy(self, novel: bool) -> float:
        """Return the percentage of regions whose nearest text embedding is that of their class.

        Counts regions of novel or of base classes; NaN without regions.
        """
        count, right = self.count(novel), int(self._nearest_is_own[self.novel == novel].sum())
        return 100 * right / count if count else float("nan")


def match_objects(
    boxes: Tensor, object_boxes: Tensor, object_classes: Tensor, iou: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Match regions to annotated objects.

    Args:
        boxes: (R, 4) xyxy.
        object_boxes: (M, 4) xyxy of the objects.
        object_classes: (M,) int64.
        iou: minimum overlap.

    Returns:
        Rows of ``boxes`` with a match, and the class of the object that each overlaps most, both
        int64.
    """
    if not len(boxes) or not len(object_boxes):
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty.clone()
    best, index = pairwise_iou(Boxes(boxes), Boxes(object_boxes)).max(dim=1)
    rows = (best >= iou).nonzero()[:, 0]
    return rows, object_classes[index[rows]]
