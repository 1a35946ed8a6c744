"""The best detections of a picture, exactly, without suppressing among all R x K candidates.

Detectron2's own routine suppresses every one of the R x K candidates before it keeps the best few:
5 s for 1000 regions, 1203 classes and threshold 0. But the best box of a class is always kept, so
the M-th best of the classes' best scores bounds the scores of the M best detections from below, and
candidates under it need no look. Nor do those under the bound that rises as more boxes are kept.

Shapes: R regions, K classes, M detections, n candidates. Boxes are (x1, y1, x2, y2) in pixels.
A candidate is a region and a class; its rank is its place among the candidates, best first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vild.modeling.precision import at_least_float32


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
    boxes, scores = boxes.float(), at_least_float32(scores)
    origin = _finite_rows(boxes, scores).nonzero()[:, 0]
    if len(origin) < len(boxes):
        boxes, scores = boxes[origin], scores[origin]
    height, width = image_size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
    if max_detections < 0:
        max_detections = scores.numel()
    with torch.no_grad():
        regions, classes = _select(
            boxes.detach(), scores.detach(), score_threshold, nms_threshold, max_detections
        )
    return boxes[regions], scores[regions, classes], classes, origin[regions]


def _finite_rows(boxes: Tensor, scores: Tensor) -> Tensor:
    """(R,) bool."""
    # A sum is not finite where an entry is not, and costs a tenth of looking at each; where it
    # is not, each is looked at, as large entries may also overflow.
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores.sum(dim=1))
    if not finite.all():
        suspects = (~finite).nonzero()[:, 0]
        finite[suspects] = torch.isfinite(scores[suspects]).all(dim=1)
        finite &= torch.isfinite(boxes).all(dim=1)
    return finite


def _select(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_threshold: float, wanted: int
) -> tuple[Tensor, Tensor]:
    """Regions and classes of the detections, best first."""
    regions, classes = _candidates(scores, score_threshold, wanted)
    boxes = boxes[regions]  # (n, 4)
    kept = regions.new_empty(0)  # ranks
    # ranks of what is neither kept nor suppressed, grouped by class and ascending in each group
    open_ = classes.sort(stable=True).indices
    while len(open_):
        # Greedy suppression in all classes at once: the best of each is kept...
        own = classes[open_]
        first = torch.ones_like(own, dtype=torch.bool)
        first[1:] = own[1:] != own[:-1]
        leaders = open_[first]
        kept = torch.cat([kept, leaders]).sort().values[:wanted]
        # ... and what it overlaps goes, with all that comes too late in any case.
        leader = leaders[first.cumsum(0) - 1]
        gone = first | _overlap(boxes[leader], boxes[open_], nms_threshold)
        if len(kept) == wanted:
            gone |= open_ > kept[-1]
        open_ = open_[~gone]
    return regions[kept], classes[kept]


def _candidates(scores: Tensor, threshold: float, wanted: int) -> tuple[Tensor, Tensor]:
    """Regions (n,) and classes (n,) of all that may be among the detections, best first.

    Equal scores go by region, then by class.
    """
    if not scores.numel() or not wanted:
        empty = torch.empty(0, dtype=torch.int64, device=scores.device)
        return empty, empty
    possible = None
    if scores.shape[1] > wanted:
        bound = scores.amax(dim=0).topk(wanted).values[-1]
        if bound > threshold:
            possible = scores >= bound
    if possible is None:
        possible = scores > threshold
    regions, classes = possible.nonzero(as_tuple=True)  # by region, then by class
    order = scores[regions, classes].sort(descending=True, stable=True).indices
    return regions[order], classes[order]


def _overlap(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Whether the IoU exceeds the threshold; boxes (..., 4) against boxes (..., 4), broadcast.

    Operations, their order and precision are those of torchvision's NMS: two empty boxes have the
    IoU 0 / 0, which exceeds nothing, and the quotient meets the threshold in double precision.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    sides = (high - low).clamp_(min=0)
    inter = sides[..., 0] * sides[..., 1]
    iou = inter / (_area(first) + _area(second) - inter)
    limit = torch.tensor(threshold, dtype=iou.dtype)
    if float(limit) > threshold:  # then the next float32 below says the same as the double does
        limit = torch.nextafter(limit, torch.tensor(-torch.inf, dtype=limit.dtype))
    return iou > float(limit)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
