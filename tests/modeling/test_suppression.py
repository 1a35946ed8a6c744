"""Suppression of all classes at once against torchvision's NMS of each class, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from vild.modeling import select_detections, suppression
from vild.modeling.suppression import suppress, suppress_in_rounds

from .waits import Waits


def class_by_class(boxes: Tensor, classes: Tensor, threshold: float, wanted: int) -> list[int]:
    kept = []
    for number in classes.unique():
        own = (classes == number).nonzero()[:, 0]
        kept += own[nms(boxes[own], -own.float(), threshold)].tolist()
    return sorted(kept)[: wanted if wanted >= 0 else None]


def candidates(kind: str, seed: int, number: int, classes: int) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4), clipped to 1200 x 800 pixels, and classes (n,)."""
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
    if kind == "whole pixels":  # many IoUs are fractions of small numbers, the threshold among them
        boxes = (boxes / 40).round() * 10
    boxes = torch.stack([boxes[:, n].clamp(0, (1200, 800)[n % 2]) for n in range(4)], dim=1)
    if kind == "degenerate":
        boxes[0::7, 2] = boxes[0::7, 0]  # no area
        boxes[1::5] = boxes[1]  # equal ones
        boxes[3::11, 2] = boxes[3::11, 0] + 1e-4  # thinner than float64 keeps once moved
    return boxes, torch.randint(0, classes, (number,), generator=generator)


@pytest.mark.parametrize("classes", [1, 3, 32, 33, 80, 1203, 100_000])
@pytest.mark.parametrize("kind", ["random", "clustered", "whole pixels", "degenerate"])
def test_equals_nms_of_each_class(kind: str, classes: int) -> None:
    for seed, threshold in enumerate((0.5, 0.6, 0.3, 0.7)):
        boxes, numbers = candidates(kind, seed, 700, classes)
        for wanted in (-1, 0, 1, 40, 300, 5000):
            expected = class_by_class(boxes, numbers, threshold, wanted)
            assert suppress(boxes, numbers, threshold, wanted).tolist() == expected
        assert suppress_in_rounds(boxes, numbers, threshold, 300).tolist() == expected[:300]


@pytest.mark.parametrize("longest", [0, 100, 450])
def test_more_candidates_than_one_call_takes(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "LONGEST", longest)
    boxes, numbers = candidates("clustered", 0, 700, 40)
    for wanted in (-1, 30, 300):
        expected = class_by_class(boxes, numbers, 0.5, wanted)
        assert suppress(boxes, numbers, 0.5, wanted).tolist() == expected


@pytest.mark.parametrize("classes", [1, 20])
def test_float32_decides_at_the_threshold(classes: int) -> None:
    """60 / 100 is above 0.6 in float32, and not in float64."""
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 6, 10]])
    boxes = pair.repeat(classes, 1)
    numbers = torch.arange(classes).repeat_interleave(2)
    assert nms(pair, torch.tensor([0.9, 0.8]), 0.6).tolist() == [0]
    assert nms(pair.double(), torch.tensor([0.9, 0.8]).double(), 0.6).tolist() == [0, 1]
    assert suppress(boxes, numbers, 0.6, -1).tolist() == list(range(0, 2 * classes, 2))


@pytest.mark.parametrize(
    ("classes", "most"), [(1, 8), (3, 12), (20, 10), (80, 10), (1203, 16), (20_000, 16)]
)
def test_a_gpu_waits_a_few_times(classes: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word took up to 300 rounds, and as many waits."""
    monkeypatch.setattr(suppression, "FEW", suppression.FEW_GPU)
    boxes, _ = candidates("random", 0, 1000, classes)
    scores = torch.randn(1000, classes, generator=torch.Generator().manual_seed(1)).softmax(1)
    with Waits() as waits:
        found = select_detections(boxes, scores, (800, 1200), 0.0, 0.5, 300)
    assert len(found[0]) == 300
    assert 2 <= sum(waits.found.values()) <= most, waits.found
