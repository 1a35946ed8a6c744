"""Greedy per-class NMS with exactly the results of torchvision's NMS in float32.

Shapes: n candidates, M of them kept. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

# most candidates in one call of NMS, whose time is quadratic if most are kept
LONGEST = 16_384
# most classes for one NMS call per class; with a GPU, the host waits for each call
FEW, FEW_GPU = 40, 4
# boxes in the sample that shows whether most boxes overlap; most classes for which it is drawn
SAMPLE, SAMPLED_CLASSES = 64, 40
COLUMNS = 256  # classes are shifted onto a grid, because small offsets round less
# A dozen float32 roundings change an IoU by a relative error below BAND. Shifting a box in float64
# changes it far less, unless a side is shorter than THIN pixels.
BAND, THIN = 1e-6, 2**-10


def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float, wanted: int
) -> Tensor:
    """Return the candidates that NMS keeps, best first; of equal scores, the first is better.

    Only better candidates can suppress a candidate, so NMS starts with the best ones and takes
    more of them until enough are kept.

    Args:
        boxes: (n, 4) float32.
        scores: (n,) float32 or float64, finite.
        classes: (n,) int64.
        nms_threshold: a candidate is dropped if its IoU with a better, kept candidate of its class
            exceeds this.
        wanted: maximum number to keep; negative: no limit.

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
        if len(seen) > size - dropped:  # ties at the limit
            seen = _best_first(seen, scores, size - dropped).sort().values
        kept = seen[_suppress(boxes[seen], scores[seen], classes[seen], nms_threshold)]
        if size == number or len(kept) >= wanted:
            return _best_first(kept, scores, wanted)
        # of the candidates seen, only the kept ones can suppress others
        is_open.index_fill_(0, seen, False).index_fill_(0, kept, True)
        dropped += len(seen) - len(kept)
        size = min(number, 2 * size * wanted // len(kept))  # later candidates are kept less often
    ranked = _best_first(torch.arange(number, device=boxes.device), scores, -1)
    return ranked[suppress_in_rounds(boxes[ranked], classes[ranked], nms_threshold, wanted)]


def _first_size(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float, wanted: int
) -> int:
    """Return how many of the best candidates to try first; arguments as in :func:`suppress`.

    A few more than ``wanted`` are enough unless most boxes overlap. With few classes, this is
    estimated from a sample: NMS keeps about as many of it as of each class.
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
    """Return the ``wanted`` best of the candidates (s,) int64, by scores (n,), best first."""
    kept = kept[scores[kept].sort(descending=True, stable=True).indices]
    return kept if wanted < 0 else kept[:wanted]


def _suppress(boxes: Tensor, scores: Tensor, classes: Tensor, nms_threshold: float) -> Tensor:
    """Run per-class NMS on all candidates.

    Many classes are processed in one call, by shifting the boxes of each class to a separate place.
    The shift needs float64, where an IoU close to the threshold may fall on the other side than in
    float32. NMS is therefore run just below and just above the threshold: for a class of which both
    runs keep the same candidates, no IoU was close enough to matter, and float32 gives the same
    result. The remaining classes are processed one by one, unshifted, in float32. So are all
    classes if there are few.

    Args:
        boxes: (n, 4) float32.
        scores: (n,) float32 or float64.
        classes: (n,) int64.
        nms_threshold: see :func:`suppress`.

    Returns:
        (M,) int64, indices of the kept candidates, ascending.
    """
    if scores.dtype != boxes.dtype:  # NMS needs one dtype; only the order matters
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
    # index_fill_, because assigning a number to rows copies it to the GPU and waits
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
    """Run NMS on candidates ``order`` (s,), grouped by class with group sizes ``lengths`` (c,).

    Returns:
        (M,) int64, indices of the kept candidates, ascending.
    """
    parts = lengths.tolist()
    groups = zip(
        order.split(parts), boxes[order].split(parts), scores[order].split(parts), strict=True
    )
    kept = [own[nms(own_boxes, own_scores, nms_threshold)] for own, own_boxes, own_scores in groups]
    return torch.cat([order[:0], *kept]).sort().values


def suppress_in_rounds(boxes: Tensor, classes: Tensor, nms_threshold: float, wanted: int) -> Tensor:
    """Return the candidates that :func:`suppress` keeps, ascending; input is sorted, best first.

    Each round keeps the best remaining candidate of every class, until ``wanted`` are kept. Plain
    NMS would process all candidates of a class, in quadratic time. Exported detectors contain this
    function, compiled by TorchScript.
    """
    if wanted < 0:
        wanted = len(boxes)
    kept = classes.new_empty(0)
    # ranks of the undecided candidates, grouped by class and ascending in each group
    open_ = classes.sort(stable=True).indices
    while len(open_):
        # Greedy NMS in all classes at once: keep the best candidate of each class ...
        own = classes[open_]
        first = torch.ones_like(own, dtype=torch.bool)
        first[1:] = own[1:] != own[:-1]
        leaders = open_[first]
        kept = torch.cat([kept, leaders]).sort().values[:wanted]
        # ... and drop those that it overlaps and those that rank too low in any case.
        leader = leaders[first.cumsum(0) - 1]
        gone = first | _overlap(boxes[leader], boxes[open_], nms_threshold)
        if len(kept) == wanted:
            gone |= open_ > kept[-1]
        open_ = open_[~gone]
    return kept


def _overlap(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """Return whether the IoU of boxes (..., 4) and boxes (..., 4), broadcast, exceeds a threshold.

    Operations, their order and precision match torchvision's NMS: two empty boxes have the IoU
    0 / 0, which exceeds nothing, and the comparison with the threshold is in double precision.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    sides = (high - low).clamp_(min=0)
    inter = sides[..., 0] * sides[..., 1]
    iou = inter / (_area(first) + _area(second) - inter)
    limit = torch.tensor(threshold, dtype=iou.dtype)
    if float(limit) > threshold:  # the next lower float32 gives the same comparison as the double
        limit = torch.nextafter(limit, torch.tensor(-torch.inf, dtype=limit.dtype))
    return iou > float(limit)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
