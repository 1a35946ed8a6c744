"""Similarity of regions to class names."""

from __future__ import annotations

import math

import pytest
import torch

from vild.evaluation.similarity import SimilarityMeter, match_objects

TEXT = torch.eye(3, 4)


def test_means_and_shares() -> None:
    meter = SimilarityMeter(TEXT, (False, False, True))
    near = torch.tensor([[0.8, 0.6, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    meter.add(near[:2], torch.tensor([0, 0]))
    meter.add(near[2:], torch.tensor([2]))
    meter.add(near[:0], torch.zeros(0, dtype=torch.int64))
    mean = meter.mean()
    torch.testing.assert_close(mean[0], torch.tensor([0.7, 0.7, 0.0]))
    assert mean[1].isnan().all()
    torch.testing.assert_close(mean[2], torch.tensor([0.0, 0.0, 1.0]))
    assert meter.accuracy(novel=False) == 50.0
    assert (meter.count(novel=False), meter.count(novel=True)) == (2, 1)
    assert meter.accuracy(novel=True) == 100.0
    assert meter.counts.tolist() == [2, 0, 1]


def test_without_regions_nothing_is_known() -> None:
    meter = SimilarityMeter(TEXT, (False, False, True))
    assert math.isnan(meter.accuracy(novel=True))
    with pytest.raises(ValueError, match="a novel flag for each of 3"):
        SimilarityMeter(TEXT, (False,))


def test_regions_take_the_object_that_they_overlap_most() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60], [1, 0, 11, 10]])
    objects = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10]])
    rows, classes = match_objects(boxes, objects, torch.tensor([7, 8]))
    assert rows.tolist() == [0, 1, 3]
    assert classes.tolist() == [7, 7, 7]
    for one, other in ((boxes[:0], objects), (boxes, objects[:0])):
        rows, classes = match_objects(one, other, torch.zeros(len(other), dtype=torch.int64))
        assert rows.tolist() == classes.tolist() == []
