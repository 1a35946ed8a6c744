"""Greedy suppression within each class, exactly as torchvision's NMS does it in float32.

Shapes: n candidates, M of them kept. Candidates come best first; the rank of a candidate is its
place among them. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

# candidates in one call of NMS, whose time grows with the square where all are kept
LONGEST = 16_384
# classes that are suppressed one after the other; a GPU's host waits at each
FEW, FEW_GPU = 32, 4
COLUMNS = 256  # classes are laid out on a grid: the smaller the offsets, the smaller the rounding
# A dozen roundings to float32 change an IoU by less than BAND of it. Moving a box in float64
# changes it by much less, unless a side is below THIN pixels.
BAND, THIN = 1e-6, 2**-10


def suppress(boxes: Tensor, classes: Tensor, nms_threshold: float, wanted: int) -> Tensor:
    """Return the ranks of the candidates that are kept.

    Suppression depends on better ranks alone, so the first candidates are looked at, and more of
    them until enough are kept.

    Args:
        boxes: (n, 4) float32, best first.
        classes: (n,) int64.
        nms_threshold: a candidate is dropped when its IoU with a better one of its class that is
            kept exceeds this.
        wanted: most candidates to keep; negative: all.

    Returns:
        (M,) int64, ascending.
    """
    size = wanted * 3 // 2 if wanted >= 0 else len(boxes)
    while min(size, len(boxes)) <= LONGEST:
        kept = _suppress(boxes[:size], classes[:size], nms_threshold)
        if size >= len(boxes) or len(kept) >= wanted:
            return kept if wanted < 0 else kept[:wanted]
        size = 2 * size * wanted // max(1, len(kept))  # the further, the fewer are kept
    return suppress_in_rounds(boxes, classes, nms_threshold, wanted)


def _suppress(boxes: Tensor, classes: Tensor, nms_threshold: float) -> Tensor:
    """Suppress all candidates.

    A few classes are suppressed one after the other. Of more, all are suppressed at once, each
    moved to a place of its own. That takes float64, whose IoU may lie on the other side of the
    threshold than float32's if it is within rounding of it. Where a run just below the threshold
    and one just above it keep the same candidates of a class, no such IoU decided anything, and
    float32 keeps the same. The other classes are suppressed again, unmoved, in float32.

    Args:
        boxes: (n, 4) float32, best first.
        classes: (n,) int64.
        nms_threshold: see :func:`suppress`.

    Returns:
        (M,) int64 ranks, ascending.
    """
    order = -torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    alone = classes.unique()
    if len(alone) > (FEW_GPU if boxes.is_cuda else FEW):
        cells = torch.stack([classes % COLUMNS, classes // COLUMNS], dim=1).double()
        moved = boxes.double() + (cells * (boxes.max() + 1)).repeat(1, 2)
        fewer = kept.clone()
        # index_fill_: a number that is assigned to rows is copied to a GPU first, which waits
        fewer.index_fill_(0, nms(moved, order.double(), nms_threshold * (1 - BAND)), True)
        kept.index_fill_(0, nms(moved, order.double(), nms_threshold * (1 + BAND)), True)
        sides = boxes[:, 2:] - boxes[:, :2]
        thin = ((sides > 0) & (sides < THIN)).any(dim=1)
        alone = classes[(fewer != kept) | thin].unique()
    for number in alone.tolist():
        own = (classes == number).nonzero()[:, 0]
        kept.index_fill_(0, own, False)
        kept.index_fill_(0, own[nms(boxes[own], order[own], nms_threshold)], True)
    return kept.nonzero()[:, 0]


def suppress_in_rounds(boxes: Tensor, classes: Tensor, nms_threshold: float, wanted: int) -> Tensor:
    """Do what :func:`suppress` does, in as many rounds as candidates of one class are kept.

    TorchScript compiles it for exported detectors, which run without torchvision.
    """
    if wanted < 0:
        wanted = len(boxes)
    kept = classes.new_empty(0)  # ranks
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
    return kept


def _overlap(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Return whether the IoU of boxes (..., 4) and boxes (..., 4), broadcast, exceeds a threshold.

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
