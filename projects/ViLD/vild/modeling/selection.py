"""Exact selection of an image's best detections, without running NMS on all R x K candidates.

Detectron2 runs NMS on all R x K candidates before it keeps the best few: 5 s for 1000 regions, 1203
classes and threshold 0. But NMS always keeps the best box of each class, so the M-th best of the
class maxima is a lower bound of the scores of the M best detections, and candidates below it can be
skipped. The bound rises as more regions are scored.

Shapes: R regions, K classes, M detections, n candidates. Boxes are (x1, y1, x2, y2) in pixels.
A candidate is a region and a class.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vild.modeling.float32 import at_least_float32
from vild.modeling.suppression import suppress

BLOCK = 64  # classes


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the score threshold and per-class NMS, and keep the best ``max_detections``.

    Returns the same detections as Detectron2's ``fast_rcnn_inference_single_image``, except that

    - IoU is computed in float32 on the original boxes. Detectron2 may shift each class by an
      offset, which rounds coordinates to 2 pixels at 20,000 classes;
    - region indices refer to the input, even if rows with non-finite values were dropped;
    - ties in score are ordered by region, then by class. Detectron2 leaves them to its sort.

    Args:
        boxes: (R, 4), one box per region for all classes.
        scores: (R, K) without background.
        image_size: height, width; boxes are clipped to it.
        score_threshold: scores must exceed it.
        nms_threshold: a box is dropped if its IoU with a better box of its class exceeds it.
        max_detections: maximum number of detections; negative: no limit.

    Returns:
        boxes (M, 4) float32, clipped; scores (M,), at least float32; classes (M,) and regions (M,)
        int64. Best first.

    Raises:
        ValueError: shapes that do not fit.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(boxes) != len(scores):
        raise ValueError(
            f"expected boxes (R, 4) and scores (R, K), got {tuple(boxes.shape)} and "
            f"{tuple(scores.shape)}"
        )
    limits = (image_size, score_threshold, nms_threshold, max_detections)
    return select_from_chunks(boxes, [scores], *limits)


@torch.no_grad()
def select_from_chunks(
    boxes: Tensor,
    chunks: Iterable[Tensor],
    image_size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Select detections like :func:`select_detections`, from scores that arrive in chunks.

    The scores of all regions are never in memory at once: of each chunk, only the candidates that
    may still become detections are kept.

    Args:
        boxes: (R, 4).
        chunks: scores (r, K) of consecutive regions, R rows in total. A chunk is processed before
            the next one is requested.
        image_size: height, width.
        score_threshold: see :func:`select_detections`.
        nms_threshold: see :func:`select_detections`.
        max_detections: see :func:`select_detections`.

    Returns:
        See :func:`select_detections`.

    Raises:
        ValueError: the chunks do not have R rows in total.
    """
    boxes = boxes.float()
    candidates = _Candidates(score_threshold, max_detections, boxes.device)
    done = 0
    for scores in chunks:
        own = boxes[done : done + len(scores)]
        if len(own) == len(scores):
            candidates.add(at_least_float32(scores), own, done)
        done += len(scores)
    if done != len(boxes):
        raise ValueError(f"expected scores of {len(boxes)} regions, got {done}")
    scores, regions, classes = candidates.all()
    boxes = boxes.clone()
    boxes[:, 0::2].clamp_(0, image_size[1])
    boxes[:, 1::2].clamp_(0, image_size[0])
    kept = suppress(boxes[regions], scores, classes, nms_threshold, max_detections)
    regions = regions[kept]
    return boxes[regions], scores[kept], classes[kept], regions


class _Candidates:
    """The candidates that may become detections, among the regions seen so far.

    Args:
        threshold: scores must exceed it.
        wanted: number of detections; negative: no limit.
        device: of the scores.
    """

    def __init__(self, threshold: float, wanted: int, device: torch.device) -> None:
        self.threshold, self.wanted, self.device = threshold, wanted, device
        self.bound = -torch.inf
        self.class_best: Tensor | None = None  # (K,)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, boxes: Tensor, first: int) -> None:
        """Add the candidates among the scores (r, K) of consecutive regions.

        Args:
            scores: floats; regions with non-finite scores or boxes are skipped.
            boxes: (r, 4) float32.
            first: index of the first region.
        """
        rows = _finite_rows(scores, boxes)
        if rows is not None:
            scores = scores[rows]
        if not scores.numel() or not self.wanted:
            return
        # rounded like ``scores > threshold``: 0.05 in float32 exceeds 0.05, but not itself
        self.threshold = torch.tensor(self.threshold, dtype=scores.dtype).item()
        if 0 < self.wanted < scores.shape[1]:
            best = scores.amax(dim=0)
            if self.class_best is not None:
                best = torch.maximum(best, self.class_best)
            self.class_best = best
            self.bound = float(best.topk(self.wanted).values[-1])
        if self.bound > self.threshold:
            regions, classes = _where_at_least(scores, self.bound)
        else:
            regions, classes = (scores > self.threshold).nonzero(as_tuple=True)
        found = scores[regions, classes]
        if rows is not None:
            regions = rows[regions]
        self.found.append((found, regions + first, classes))

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, regions and classes, (n,) each, ordered by region, then by class."""
        if not self.found:
            indices = torch.empty(0, dtype=torch.int64, device=self.device)
            return torch.empty(0, device=self.device), indices, indices
        if len(self.found) == 1:
            return self.found[0]
        scores, regions, classes = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        if self.bound > self.threshold:  # the bound has risen since the first chunks
            late = (scores >= self.bound).nonzero()[:, 0]
            scores, regions, classes = scores[late], regions[late], classes[late]
        return scores, regions, classes


def _where_at_least(scores: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return ``(scores >= bound).nonzero(as_tuple=True)``, searching only blocks whose max fits."""
    classes = scores.shape[1]
    whole = classes // BLOCK
    blocks = scores[:, : whole * BLOCK].unflatten(1, (whole, BLOCK))
    rows, numbers = (blocks.amax(dim=2) >= bound).nonzero(as_tuple=True)
    which, within = (blocks[rows, numbers] >= bound).nonzero(as_tuple=True)
    in_blocks = rows[which] * classes + numbers[which] * BLOCK + within
    rows, within = (scores[:, whole * BLOCK :] >= bound).nonzero(as_tuple=True)
    flat = torch.cat([in_blocks, rows * classes + whole * BLOCK + within]).sort().values
    return flat // classes, flat % classes


def _finite_rows(scores: Tensor, boxes: Tensor) -> Tensor | None:
    """Return the rows (s,) int64 with finite scores (r, K) and boxes (r, 4); None if all are."""
    # The sum is non-finite if an entry is, and costs a tenth of checking each entry. Rows with a
    # non-finite sum are checked entry by entry, because large values may overflow.
    finite = torch.isfinite(scores.sum(dim=1) + boxes.sum(dim=1))
    if finite.all():
        return None
    suspects = (~finite).nonzero()[:, 0]
    finite[suspects] = torch.isfinite(scores[suspects]).all(dim=1)
    finite[suspects] &= torch.isfinite(boxes[suspects]).all(dim=1)
    return finite.nonzero()[:, 0]
