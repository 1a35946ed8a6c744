"""Transforms, masks and the operators that need the compiled extension."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ExtentTransform
from detectron2.layers import DeformConv, ROIAlignRotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import PolygonMasks, polygons_to_bitmask
from PIL import Image

COMPILED = importlib.util.find_spec("detectron2._C") is not None


def test_extent_transform_interpolates_linearly_by_default() -> None:
    transform = ExtentTransform((0, 0, 4, 4), (2, 2))
    assert transform.interp == Image.BILINEAR
    assert transform.apply_image(np.full((4, 4, 3), 7, np.uint8)).shape == (2, 2, 3)


def test_deformable_convolution_equals_convolution_at_zero_offset() -> None:
    layer = DeformConv(2, 3, kernel_size=3, padding=1)
    image, offset = torch.rand(1, 2, 6, 6), torch.zeros(1, 18, 6, 6)
    expected = torch.nn.functional.conv2d(image, layer.weight, padding=1)
    torch.testing.assert_close(layer(image, offset), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pairwise_iou_rotated(torch.tensor([[2.0, 2, 2, 2, 0]]), torch.ones(1, 5)),
        lambda: ROIAlignRotated((2, 2), 1.0, 1)(
            torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 2, 2, 2, 2, 0]])
        ),
    ],
    ids=["iou", "roi_align"],
)
def test_rotated_operators_run_or_say_what_is_missing(call) -> None:
    if COMPILED:
        assert torch.isfinite(call()).all()
    else:
        with pytest.raises(ImportError, match=r"detectron2\._C\.\w+ is a compiled operator"):
            call()


def test_anchors_are_laid_out_without_a_warning() -> None:
    generator = DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    centres = anchors.get_centers().tolist()
    assert centres == [[2.0, 2.0], [6.0, 2.0], [10.0, 2.0], [2.0, 6.0], [6.0, 6.0], [10.0, 6.0]]


def test_polygon_masks_on_this_numpy() -> None:
    square = np.array([1.0, 1, 3, 1, 3, 3, 1, 3])
    mask = polygons_to_bitmask([square], 5, 5)
    assert mask.dtype == bool
    assert mask.sum() == 4
    assert not polygons_to_bitmask([], 5, 5).any()
    assert PolygonMasks([[square], []]).nonempty().tolist() == [True, False]
