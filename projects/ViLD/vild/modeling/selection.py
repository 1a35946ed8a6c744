"""The best detections of an image, exactly, without suppressing among all R x K candidates.

Detectron2's own routine suppresses every one of the R x K candidates before it keeps the best few:
5 s for 1000 regions, 1203 classes and threshold 0. But the best box of a class is always kept, so
the M-th best of the classes' best scores bounds the scores of the M best detections from below, and
candidates under it need no look. Nor do those under the bound that rises as more boxes are kept.

Shapes: R regions, K classes, M detections, n candidates. Boxes are (x1, y1, x2, y2) in pixels.
A candidate is a region and a class.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vild.modeling.precision import at_least_float32
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
    """Threshold, suppression per class, the best ``max_detections``.

    The same detections as Detectron2's ``fast_rcnn_inference_single_image``, except that

    - IoU is measured in float32 on the boxes as they are. Detectron2 may move each class by an
      offset, which rounds coordinates to 2 pixels once there are 20,000 classes;
    - regions are counted in the input, also when rows that are not finite were dropped before;
    - equal scores go by region, then by class. Detectron2's order is that of its sort.

    Args:
        boxes: (R, 4), one box per region for all classes.
        scores: (R, K) without background.
        image_size: height, width; boxes are clipped to it.
        score_threshold: scores have to exceed it.
        nms_threshold: a box falls when its IoU with a better one of its class exceeds it.
        max_detections: negative: all.

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
    """:func:`select_detections` of scores that come a few regions at a time.

    The scores of all regions need never be in memory at once: of a chunk only what may still be
    among the detections is kept.

    Args:
        boxes: (R, 4).
        chunks: scores (r, K) of the first regions, of the next, ...; R rows in all. One is done
            with before the next is asked for.
        image_size: height, width.
        score_threshold: as there.
        nms_threshold: as there.
        max_detections: as there.

    Returns:
        as there.

    Raises:
        ValueError: chunks of more or fewer than R rows.
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
    """All that may be among the detections, of the regions seen so far.

    Args:
        threshold: scores have to exceed it.
        wanted: number of detections; negative: all.
        device: of the scores.
    """

    def __init__(self, threshold: float, wanted: int, device: torch.device) -> None:
        self.threshold, self.wanted, self.device = threshold, wanted, device
        self.bound = -torch.inf
        self.class_best: Tensor | None = None  # (K,)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, boxes: Tensor, first: int) -> None:
        """Take the candidates out of scores (r, K) of the regions from ``first`` on.

        Args:
            scores: floats; regions whose scores or boxes are not finite are passed over.
            boxes: (r, 4) float32.
            first: number of the first region.
        """
        rows = _finite_rows(scores, boxes)
        if rows is not None:
            scores = scores[rows]
        if not scores.numel() or not self.wanted:
            return
        # rounded as ``scores > threshold`` does: 0.05 in float32 exceeds 0.05, but not itself
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
        """Return scores, regions and classes, (n,) each, by region, then by class."""
        if not self.found:
            indices = torch.empty(0, dtype=torch.int64, device=self.device)
            return torch.empty(0, device=self.device), indices, indices
        if len(self.found) == 1:
            return self.found[0]
        scores, regions, classes = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        if self.bound > self.threshold:  # it has risen since the first of them were found
            late = (scores >= self.bound).nonzero()[:, 0]
            scores, regions, classes = scores[late], regions[late], classes[late]
        return scores, regions, classes


def _where_at_least(scores: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """``(scores >= bound).nonzero(as_tuple=True)``; maxima of blocks say where to look for them."""
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
    # A sum is not finite where an entry is not, and costs a tenth of looking at each; where it
    # is not, each is looked at, as large entries may also overflow.
    finite = torch.isfinite(scores.sum(dim=1) + boxes.sum(dim=1))
    if finite.all():
        return None
    suspects = (~finite).nonzero()[:, 0]
    finite[suspects] = torch.isfinite(scores[suspects]).all(dim=1)
    finite[suspects] &= torch.isfinite(boxes[suspects]).all(dim=1)
    return finite.nonzero()[:, 0]
