"""Greedy suppression within each class, exactly as torchvision's NMS does it in float32.

Shapes: n candidates, M of them kept. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

# candidates in one call of NMS, whose time grows with the square where all are kept
LONGEST = 16_384
# classes that are suppressed one after the other; a GPU's host waits at each
FEW, FEW_GPU = 40, 4
# boxes that show whether most overlap others, and the classes up to which it is worth a look
SAMPLE, SAMPLED_CLASSES = 64, 40
COLUMNS = 256  # classes are laid out on a grid: the smaller the offsets, the smaller the rounding
# A dozen roundings to float32 change an IoU by less than BAND of it. Moving a box in float64
# changes it by much less, unless a side is below THIN pixels.
BAND, THIN = 1e-6, 2**-10


def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float, wanted: int
) -> Tensor:
    """Return the candidates that are kept, best first; of equal scores, the first is better.

    Suppression depends on better candidates alone, so the best are looked at, and more of them
    until enough are kept.

    Args:
        boxes: (n, 4) float32.
        scores: (n,) float32 or float64, finite.
        classes: (n,) int64.
        nms_threshold: a candidate is dropped when its IoU with a better one of its class that is
            kept exceeds this.
        wanted: most candidates to keep; negative: all.

    Returns:
        (M,) int64, indices of candidates.
    """
    number = len(scores)
    size = _first_size(boxes, scores, classes, nms_threshold, wanted)
    if size == number <= LONGEST:
        kept = _suppress(boxes, scores, classes, nms_threshold)
        return _best_first(kept, scores, wanted)
    is_open = torch.ones_like(classes, dtype=torch.bool)
    dropped = 0
    while size - dropped <= LONGEST:
        if size < number:
            seen = (is_open & (scores >= scores.topk(size).values[-1])).nonzero()[:, 0]
        else:
            seen = is_open.nonzero()[:, 0]
        if len(seen) > size - dropped:  # some of equal scores are beyond the limit
            seen = _best_first(seen, scores, size - dropped).sort().values
        kept = seen[_suppress(boxes[seen], scores[seen], classes[seen], nms_threshold)]
        if size == number or len(kept) >= wanted:
            return _best_first(kept, scores, wanted)
        # Of those seen, only the kept ones suppress others.
        is_open.index_fill_(0, seen, False).index_fill_(0, kept, True)
        dropped += len(seen) - len(kept)
        size = min(number, 2 * size * wanted // len(kept))  # the further, the fewer are kept
    ranked = _best_first(torch.arange(number, device=boxes.device), scores, -1)
    return ranked[suppress_in_rounds(boxes[ranked], classes[ranked], nms_threshold, wanted)]


def _first_size(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float, wanted: int
) -> int:
    """Return how many of the best candidates to look at first; arguments as in :func:`suppress`.

    A few more than wanted are enough unless most boxes overlap others. Of a few classes, a sample
    of boxes tells: it keeps about as many as each class will keep in all.
    """
    number = len(boxes)
    if wanted < 0 or number <= wanted * 3 // 2:
        return number
    size = max(1, wanted * 3 // 2)
    few = int(classes.max()) + 1
    if few > SAMPLED_CLASSES:
        return size
    step = max(1, number // SAMPLE)
    sample = boxes[::step]
    objects = len(nms(sample, scores[::step].to(boxes.dtype), nms_threshold))
    if objects > len(sample) // 2:
        return size
    if few * objects < wanted and number <= LONGEST:
        return number
    return min(number, max(size, few * SAMPLE))


def _best_first(kept: Tensor, scores: Tensor, wanted: int) -> Tensor:
    """Return the best of candidates (s,) int64, ascending, by scores (n,); arguments as above."""
    kept = kept[scores[kept].sort(descending=True, stable=True).indices]
    return kept if wanted < 0 else kept[:wanted]


def _suppress(boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float) -> Tensor:
    """Suppress all candidates.

    Of many classes, all are suppressed at once, each moved to a place of its own. That takes
    float64, whose IoU may lie on the other side of the threshold than float32's if it is within
    rounding of it. Where a run just below the threshold and one just above it keep the same
    candidates of a class, no such IoU decided anything, and float32 keeps the same. The other
    classes are suppressed one after the other, unmoved, in float32, as a few classes are.

    Args:
        boxes: (n, 4) float32.
        scores: (n,) float32 or float64.
        classes: (n,) int64.
        nms_threshold: see :func:`suppress`.

    Returns:
        (M,) int64, indices of those that are kept, ascending.
    """
    if scores.dtype != boxes.dtype:  # NMS takes one type, and needs the order alone
        scores = -scores.sort(descending=True, stable=True).indices.argsort().to(boxes.dtype)
    if not classes.any():
        return nms(boxes, scores, nms_threshold).sort().values
    by_class, order = classes.sort(stable=True)
    lengths = by_class.unique_consecutive(return_counts=True)[1]
    if len(lengths) <= (FEW_GPU if boxes.is_cuda else FEW):
        return _class_by_class(boxes, scores, order, lengths, nms_threshold)
    cells = torch.stack([classes % COLUMNS, classes // COLUMNS], dim=1).double()
    moved = boxes.double() + (cells * (boxes.max() + 1)).repeat(1, 2)
    fewer, kept = torch.zeros_like(classes, dtype=torch.bool).repeat(2, 1)
    # index_fill_: a number that is assigned to rows is copied to a GPU first, which waits
    fewer.index_fill_(0, nms(moved, scores.double(), nms_threshold * (1 - BAND)), True)
    kept.index_fill_(0, nms(moved, scores.double(), nms_threshold * (1 + BAND)), True)
    sides = boxes[:, 2:] - boxes[:, :2]
    thin = ((sides > 0) & (sides < THIN)).any(dim=1)
    doubtful = ((fewer != kept) | thin)[order]
    group = torch.arange(len(lengths), device=boxes.device)
    group = group.repeat_interleave(lengths, output_size=len(order))
    repeated = torch.zeros_like(lengths).index_add_(0, group, doubtful.long()) > 0
    order = order[repeated[group].nonzero()[:, 0]]
    if len(order):
        kept.index_fill_(0, order, False)
        own = _class_by_class(boxes, scores, order, lengths[repeated], nms_threshold)
        kept.index_fill_(0, own, True)
    return kept.nonzero()[:, 0]


def _class_by_class(
    boxes: Tensor, scores: Tensor, order: Tensor, lengths: Tensor, nms_threshold: float
) -> Tensor:
    """Suppress candidates ``order`` (s,), of one class after the other, ``lengths`` (c,) of each.

    Returns:
        (M,) int64, indices of those that are kept, ascending.
    """
    parts = lengths.tolist()
    groups = zip(
        order.split(parts), boxes[order].split(parts), scores[order].split(parts), strict=True
    )
    kept = [own[nms(own_boxes, own_scores, nms_threshold)] for own, own_boxes, own_scores in groups]
    return torch.cat([order[:0], *kept]).sort().values


def suppress_in_rounds(boxes: Tensor, classes: Tensor, nms_threshold: float, wanted: int) -> Tensor:
    """Return what :func:`suppress` keeps, ascending, of candidates that come best first.

    Rounds are as many as candidates of one class are kept, and stop at ``wanted``; NMS of each
    class would suppress all its candidates, in a time that grows with the square of their number.
    Exported detectors contain it, compiled by TorchScript.
    """
    if wanted < 0:
        wanted = len(boxes)
    kept = classes.new_empty(0)
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
