"""Exact selection, compared with Detectron2's routine and a slow one with a defined order."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from torch import Tensor
from torchvision.ops import nms

from vild.modeling import select_detections, select_from_chunks

SIZE = (120, 160)  # height, width
THRESHOLDS = (0.05, 1e-4, 0.0)


def random_boxes(generator: torch.Generator, regions: int) -> Tensor:
    """Make random boxes, some of which extend beyond the image."""
    height, width = SIZE
    centres = torch.rand(regions, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.rand(regions, 2, generator=generator) * 60 + 1
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


def clustered_boxes(generator: torch.Generator, regions: int) -> Tensor:
    """Make many proposals around each of a few objects."""
    objects = random_boxes(generator, 6)[torch.randint(0, 6, (regions,), generator=generator)]
    return objects + torch.randn(regions, 4, generator=generator) * 2


def probabilities(generator: torch.Generator, regions: int, classes: int) -> Tensor:
    """Return softmax with background, without the background column."""
    logits = torch.randn(regions, classes + 1, generator=generator) * 3
    return logits.softmax(1)[:, :-1]


def quarter_pixels(boxes: Tensor) -> Tensor:
    """Round boxes to a grid on which Detectron2's class offsets are exact in float32."""
    return (boxes * 4).round() / 4


def example(kind: str, seed: int, regions: int = 200, classes: int = 60) -> tuple[Tensor, Tensor]:
    """Make boxes (R, 4) and scores (R, K)."""
    generator = torch.Generator().manual_seed(seed)
    make = random_boxes if kind == "random" else clustered_boxes
    boxes = quarter_pixels(make(generator, regions))
    scores = probabilities(generator, regions, classes)
    if kind == "tied":
        scores = (scores * 50).round() / 50
    elif kind == "flat":
        scores = torch.full((regions, classes), 0.25)
    elif kind == "degenerate":
        boxes[0::7, 2] = boxes[0::7, 0]  # no area
        boxes[1::7] = boxes[1]  # duplicates
        boxes[2::7, 0::2] = -20  # outside the image: empty after clipping
        boxes[3, 1] = torch.nan
        boxes[4, 2] = torch.inf
        scores[5, 2] = torch.nan
        scores[6, 3] = -torch.inf
        scores[8, 3] = torch.inf
    elif kind == "large":
        scores = (scores + 0.1) * 2e38  # finite, but their sum is not
    return boxes, scores


def detectron2(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], *limits: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and classes, since Detectron2's region indices skip dropped rows."""
    with_background = torch.cat([scores, torch.zeros(len(scores), 1)], dim=1)
    found, _ = fast_rcnn_inference_single_image(boxes.clone(), with_background, size, *limits)
    return found.pred_boxes.tensor, found.scores, found.pred_classes


def slow(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> list[tuple[int, int]]:
    """Return (region, class), best first; ties by region, then class. IoU in float32."""
    b, s = boxes.numpy().copy(), scores.numpy()
    rows = np.isfinite(b).all(1) & np.isfinite(s).all(1)
    b[:, 0::2], b[:, 1::2] = b[:, 0::2].clip(0, size[1]), b[:, 1::2].clip(0, size[0])
    low, high = np.maximum(b[:, None, :2], b[:, :2]), np.minimum(b[:, None, 2:], b[:, 2:])
    sides = (high - low).clip(0)
    inter, area = sides[..., 0] * sides[..., 1], (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    with np.errstate(invalid="ignore"):
        overlaps = (inter / (area[:, None] + area - inter)).astype(float) > nms_threshold
    found = []
    for k in range(s.shape[1]):
        kept: list[int] = []
        for r in np.argsort(-s[:, k], kind="stable"):
            if rows[r] and s[r, k] > np.float32(score_threshold) and not overlaps[kept, r].any():
                kept.append(int(r))
        found += [(-float(s[r, k]), r, k) for r in kept]
    return [(r, k) for _, r, k in sorted(found)[:max_detections]]


def as_set(boxes: Tensor, scores: Tensor, classes: Tensor) -> set[tuple[float, ...]]:
    rows = torch.cat([boxes, scores[:, None], classes[:, None]], dim=1).tolist()
    assert len(set(map(tuple, rows))) == len(rows)
    return set(map(tuple, rows))


def as_multiset(boxes: Tensor, scores: Tensor, classes: Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, torch.cat([boxes, scores[:, None], classes[:, None]], dim=1).tolist()))


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", ["random", "clustered", "large"])
def test_same_detections_as_detectron2(kind: str, threshold: float) -> None:
    for seed in range(6):
        for best in (10, 100, -1) if seed < 2 else (100,):
            boxes, scores = example(kind, seed)
            limits = (SIZE, threshold, 0.5, best)
            *found, regions = select_detections(boxes, scores, *limits)
            expected = detectron2(boxes, scores, *limits)
            assert as_set(*found) == as_set(*expected)
            assert torch.equal(found[1], expected[1])  # best first
            assert torch.equal(scores[regions, found[2]], found[1])


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("regions", "classes"), [(300, 300), (500, 10), (20, 600)])
def test_same_detections_as_detectron2_in_other_shapes(
    regions: int, classes: int, threshold: float
) -> None:
    for kind in ("random", "clustered"):
        boxes, scores = example(kind, 7, regions, classes)
        limits = (SIZE, threshold, 0.6, 200)
        found = select_detections(boxes, scores, *limits)
        assert as_set(*found[:3]) == as_set(*detectron2(boxes, scores, *limits))


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "degenerate"])
def test_same_detections_as_detectron2_in_full_size(kind: str, threshold: float) -> None:
    """Uses 1000 regions and 1203 classes. Detectron2 does not define the order of ties."""
    boxes, scores = example(kind, 0, 1000, 1203)
    boxes *= 8
    limits = ((960, 1280), threshold, 0.5, 300)
    found = select_detections(boxes, scores, *limits)
    expected = detectron2(boxes, scores, *limits)
    assert torch.equal(found[1], expected[1])
    assert len(found[0]) == 300
    if kind in ("random", "clustered"):
        assert as_set(*found[:3]) == as_set(*expected)
    else:
        above = [side[1] > found[1][-1] for side in (found, expected)]
        sets = [
            as_multiset(*(x[keep] for x in side[:3]))
            for side, keep in zip((found, expected), above, strict=True)
        ]
        assert sets[0] == sets[1]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "flat", "degenerate", "large"])
def test_same_order_as_a_slow_loop(kind: str, threshold: float) -> None:
    """Uses arbitrary coordinates, and ties, whose order is defined."""
    for seed in range(3):
        boxes, scores = example(kind, seed, 80, 25)
        boxes = boxes + torch.rand(80, 4, generator=torch.Generator().manual_seed(seed))
        for best in (1, 7, 60, 400):
            limits = (SIZE, threshold, 0.5, best)
            found = select_detections(boxes, scores, *limits)
            pairs = list(zip(found[3].tolist(), found[2].tolist(), strict=True))
            assert pairs == slow(boxes, scores, *limits)


def test_degenerate_rows_as_in_detectron2() -> None:
    for seed in range(4):
        boxes, scores = example("degenerate", seed)
        limits = (SIZE, 1e-4, 0.5, 100)
        *found, regions = select_detections(boxes, scores, *limits)
        expected = detectron2(boxes, scores, *limits)
        assert torch.equal(found[1], expected[1])
        assert sorted(found[2].tolist()) == sorted(expected[2].tolist())
        assert not set(regions.tolist()) & {3, 4, 5, 6, 8}
        clipped = boxes[regions].clamp(min=0).minimum(torch.tensor([160.0, 120, 160, 120]))
        assert torch.equal(found[0], clipped)  # region indices refer to the input


def test_scores_at_the_threshold_exactly() -> None:
    """0.05 in float32 exceeds 0.05; such scores must not count, even if they are the bound."""
    boxes, _ = example("random", 0, 20, 40)
    scores = torch.full((20, 40), 0.05)
    scores[3, :5] = 0.9
    found = select_detections(boxes, scores, SIZE, 0.05, 0.5, 10)
    assert found[2].tolist() == [0, 1, 2, 3, 4]
    chunked = select_from_chunks(boxes, scores.split(6), SIZE, 0.05, 0.5, 10)
    assert all(torch.equal(a, b) for a, b in zip(found, chunked, strict=True))


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.5, 0.3])
def test_iou_at_the_threshold_exactly(threshold: float) -> None:
    """torchvision compares a float32 quotient with a double: 0.6 in float32 exceeds 0.6."""
    side = 10.0
    boxes = torch.tensor([[0, 0, side, side], [0, 0, side * threshold, side]])
    scores = torch.tensor([[0.9], [0.8]])
    expected = nms(boxes, scores[:, 0], threshold)
    found = select_detections(boxes, scores, SIZE, 0.0, threshold, 10)
    assert found[3].tolist() == expected.tolist()
    assert len(select_detections(boxes, scores, SIZE, 0.0, threshold + 0.01, 10)[0]) == 2
    assert len(select_detections(boxes, scores, SIZE, 0.0, threshold - 0.01, 10)[0]) == 1


def test_twenty_thousand_classes_do_not_blur_the_boxes() -> None:
    """Class offsets of up to 20,000 x 1300 pixels have steps of 2 pixels in float32."""
    boxes = torch.tensor([[1000.0, 1000, 1003, 1003], [1000.9, 1000.9, 1003.9, 1003.9]])
    scores = torch.zeros(2, 20_000)
    scores[:, -1] = torch.tensor([0.9, 0.8])
    limits = ((1300, 1300), 0.05, 0.5, 300)
    found = select_detections(boxes, scores, *limits)
    assert torch.equal(found[0], boxes)  # IoU 0.32
    assert found[2].tolist() == [19_999, 19_999]
    assert len(detectron2(boxes, scores, *limits)[0]) == 1  # Detectron2 wrongly merges them


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "flat", "degenerate"])
def test_a_few_regions_at_a_time_give_the_same(kind: str, rows: int) -> None:
    boxes, scores = example(kind, 0)
    for best in (10, 60, 300, -1):
        limits = (SIZE, 1e-4, 0.5, best)
        found = select_from_chunks(boxes, scores.split(rows), *limits)
        expected = select_detections(boxes, scores, *limits)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_chunks_of_another_number_of_regions() -> None:
    boxes, scores = example("random", 0)
    for chunks, got in ((scores[:150].split(100), 150), ([scores, scores[:3]], 203)):
        with pytest.raises(ValueError, match=f"scores of 200 regions, got {got}"):
            select_from_chunks(boxes, chunks, SIZE, 0.05, 0.5, 300)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_there(shape: tuple[int, int]) -> None:
    found = select_detections(torch.zeros(shape[0], 4), torch.zeros(shape), SIZE, 0.0, 0.5, 300)
    assert [tuple(x.shape) for x in found] == [(0, 4), (0,), (0,), (0,)]
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.int64, torch.int64]


@pytest.mark.parametrize(("scale", "best"), [(0.0, 300), (0.01, 300), (torch.nan, 300), (1.0, 0)])
def test_nothing_good_enough(scale: float, best: int) -> None:
    boxes, scores = example("random", 0)
    found = select_detections(boxes, scores * scale, SIZE, 0.05, 0.5, best)
    assert all(not len(x) for x in found)


def test_half_precision() -> None:
    boxes, scores = example("random", 0)
    half = scores.half()
    found = select_detections(boxes, half, SIZE, 0.05, 0.5, 100)
    expected = select_detections(boxes, half.float(), SIZE, 0.05, 0.5, 100)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[1].dtype == torch.float32


def test_inputs_are_left_alone() -> None:
    boxes, scores = example("degenerate", 0)
    before = boxes.clone(), scores.clone()
    select_detections(boxes, scores, SIZE, 0.0, 0.5, 300)
    assert torch.equal(boxes.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(scores.nan_to_num(), before[1].nan_to_num())


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 8\) and \(3, 2\)"):
        select_detections(torch.zeros(3, 8), torch.zeros(3, 2), SIZE, 0.0, 0.5, 300)
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(2, 2\)"):
        select_detections(torch.zeros(3, 4), torch.zeros(2, 2), SIZE, 0.0, 0.5, 300)


@pytest.mark.parametrize("kind", ["separate", "stacked", "ordered by class"])
def test_no_input_takes_long(kind: str) -> None:
    """Quadratic work, or a step per class, would be slow at 1000 x 1203 and threshold 0."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(generator, 1000) * 8
    scores = torch.rand(1000, 1203, generator=generator)
    if kind != "separate":
        boxes = boxes[:1].expand(1000, 4)
    if kind == "ordered by class":  # the best 300,000 belong to 300 boxes
        scores = scores + torch.arange(1203)
    start = time.process_time()
    found = select_detections(boxes, scores, (960, 1280), 0.0, 0.5, 300)
    assert time.process_time() - start < 2  # 0.1 s
    assert len(found[0]) == 300


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "degenerate"])
def test_same_on_a_gpu(kind: str) -> None:
    boxes, scores = example(kind, 0)
    found = select_detections(boxes.cuda(), scores.cuda(), SIZE, 1e-4, 0.5, 100)
    expected = select_detections(boxes, scores, SIZE, 1e-4, 0.5, 100)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
