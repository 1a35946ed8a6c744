"""NMS of all classes at once, compared with torchvision's NMS of each class in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from vild.modeling import select_detections, suppression
from vild.modeling.suppression import suppress, suppress_in_rounds

from . import waits


def class_by_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float, wanted: int
) -> list[int]:
    """Return the indices of the kept candidates, best first; of equal scores, the first wins."""
    ranked = scores.sort(descending=True, stable=True).indices
    kept = []  # ranks
    for number in classes.unique():
        own = (classes[ranked] == number).nonzero()[:, 0]
        kept += own[nms(boxes[ranked[own]], -own.float(), threshold)].tolist()
    return ranked[sorted(kept)[: wanted if wanted >= 0 else None]].tolist()


def candidates(kind: str, seed: int, number: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make boxes (n, 4), clipped to 1200 x 800 pixels, scores (n,) and classes (n,)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(rows: int, low: float, high: float) -> Tensor:
        return torch.rand(rows, 2, generator=generator) * (high - low) + low

    if kind == "clustered":
        corners = uniform(9, 0, 700)[torch.randint(0, 9, (number,), generator=generator)]
        corners = corners + torch.randn(number, 2, generator=generator) * 6
        boxes = torch.cat([corners, corners + 90 + uniform(number, 0, 12)], dim=1)
    else:
        corners = uniform(number, -50, 1000)
        boxes = torch.cat([corners, corners + uniform(number, 1, 300)], dim=1)
    if kind == "whole pixels":  # many IoUs are simple fractions, such as the threshold
        boxes = (boxes / 40).round() * 10
    boxes = torch.stack([boxes[:, n].clamp(0, (1200, 800)[n % 2]) for n in range(4)], dim=1)
    if kind == "degenerate":
        boxes[0::7, 2] = boxes[0::7, 0]  # no area
        boxes[1::5] = boxes[1]  # duplicates
        boxes[3::11, 2] = boxes[3::11, 0] + 1e-4  # too thin for float64 once shifted
    scores = torch.rand(number, generator=generator)
    if kind == "tied":
        scores = (scores * 4).round() / 4
    elif kind == "flat":
        scores = torch.full_like(scores, 0.5)
    return boxes, scores, torch.randint(0, classes, (number,), generator=generator)


KINDS = ["random", "clustered", "whole pixels", "degenerate", "tied", "flat"]


@pytest.mark.parametrize("classes", [1, 3, 32, 33, 80, 1203, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_nms_of_each_class(kind: str, classes: int) -> None:
    for seed, threshold in enumerate((0.5, 0.6, 0.3, 0.7)):
        boxes, scores, numbers = candidates(kind, seed, 700, classes)
        for wanted in (-1, 0, 1, 40, 300, 5000):
            expected = class_by_class(boxes, scores, numbers, threshold, wanted)
            assert suppress(boxes, scores, numbers, threshold, wanted).tolist() == expected
        ranked = scores.sort(descending=True, stable=True).indices
        kept = suppress_in_rounds(boxes[ranked], numbers[ranked], threshold, 300)
        assert ranked[kept].tolist() == class_by_class(boxes, scores, numbers, threshold, 300)


@pytest.mark.parametrize("number", [0, 1, 2, 63, 64, 130])
def test_any_number_of_candidates(number: int) -> None:
    for kind in ("random", "clustered"):
        boxes, scores, numbers = candidates(kind, 0, number, 2)
        for wanted in (-1, 0, 1, 20, 100):
            expected = class_by_class(boxes, scores, numbers, 0.5, wanted)
            assert suppress(boxes, scores, numbers, 0.5, wanted).tolist() == expected


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_scores_that_float32_does_not_distinguish(classes: int) -> None:
    boxes, scores, numbers = candidates("clustered", 0, 700, classes)
    scores = 1 + scores.double() * 1e-9
    for wanted in (-1, 40, 300):
        expected = class_by_class(boxes, scores, numbers, 0.5, wanted)
        assert suppress(boxes, scores, numbers, 0.5, wanted).tolist() == expected


@pytest.mark.parametrize("kind", ["clustered", "tied", "flat"])
@pytest.mark.parametrize("longest", [0, 100, 450])
def test_more_candidates_than_one_call_takes(
    longest: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "LONGEST", longest)
    for classes in (3, 40):
        boxes, scores, numbers = candidates(kind, 0, 700, classes)
        for wanted in (-1, 30, 300):
            expected = class_by_class(boxes, scores, numbers, 0.5, wanted)
            assert suppress(boxes, scores, numbers, 0.5, wanted).tolist() == expected


@pytest.mark.parametrize("classes", [1, 20, 40])
def test_float32_decides_at_the_threshold(classes: int) -> None:
    """60 / 100 exceeds 0.6 in float32, but not in float64."""
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 6, 10]])
    boxes = pair.repeat(classes, 1)
    scores = torch.arange(2.0 * classes, 0, -1)
    numbers = torch.arange(classes).repeat_interleave(2)
    assert nms(pair, torch.tensor([0.9, 0.8]), 0.6).tolist() == [0]
    assert nms(pair.double(), torch.tensor([0.9, 0.8]).double(), 0.6).tolist() == [0, 1]
    kept = suppress(boxes, scores, numbers, 0.6, -1)
    assert kept.tolist() == list(range(0, 2 * classes, 2))


@pytest.mark.parametrize("classes", [1, 3, 20])
def test_a_few_objects_take_one_round(classes: int) -> None:
    """Repeated rounds would make selection slower than Detectron2's."""
    boxes, *_ = candidates("clustered", 0, 1000, classes)
    scores = torch.randn(1000, classes, generator=torch.Generator().manual_seed(1)).sigmoid()
    with waits.Waits() as counted:
        select_detections(boxes, scores, (800, 1200), 0.45, 0.5, 40 * classes)
    assert counted.found["nms"] <= classes + 1  # one for the sample


@pytest.mark.parametrize(
    ("kind", "classes", "most"),
    [("random", k, 12) for k in (1, 3, 20, 80, 1203, 20_000)]
    + [("clustered", k, 12) for k in (1, 3, 80, 1203, 20_000)]
    + [("clustered", 20, 34)],  # few boxes survive, so all 20,000 candidates are processed
)
def test_a_gpu_waits_a_few_times(
    kind: str, classes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one class, the host must not wait once per round, of which there are up to 300."""
    monkeypatch.setattr(suppression, "FEW", suppression.FEW_GPU)
    boxes, *_ = candidates(kind, 0, 1000, classes)
    scores = torch.randn(1000, classes, generator=torch.Generator().manual_seed(1)).softmax(1)
    with waits.Waits() as counted:
        found = select_detections(boxes, scores, (800, 1200), 0.0, 0.5, 300)
    assert len(found[0]) == 300 or kind == "clustered"
    assert 2 <= sum(counted.found.values()) <= most, counted.found
