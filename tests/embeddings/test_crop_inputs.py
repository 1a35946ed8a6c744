"""Boxes are enlarged and validated; invalid inputs raise errors that name the problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vild.embeddings import crop_and_resize, enlarge_boxes, valid_boxes

HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def test_enlarged_boxes() -> None:
    boxes = torch.tensor(
        [[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 40.0, 40.0], [80.0, 90.0, 100.0, 98.0]]
    )
    expected = [[5.0, 10.0, 35.0, 70.0], [0.0, 0.0, 50.0, 50.0], [75.0, 88.0, 100.0, 100.0]]
    got = enlarge_boxes(boxes, 1.5, (100, 100))
    assert got.tolist() == expected
    assert got.dtype == torch.float32
    assert enlarge_boxes(boxes, 0.5, (100, 100))[0].tolist() == [15.0, 30.0, 25.0, 50.0]
    # (height, width), not the reverse
    assert enlarge_boxes(boxes[:1], 4, (70, 50)).tolist() == [[0.0, 0.0, 50.0, 70.0]]
    assert enlarge_boxes(torch.empty(0, 4), 1.5, (100, 100)).shape == (0, 4)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_enlarged_boxes_are_new(scale: float) -> None:
    boxes = torch.tensor([[10.25, 20.0, 30.0, 60.0], [-5.0, 1.0, 7.0, 300.0]])
    before = boxes.clone()
    got = enlarge_boxes(boxes, scale, (100, 100))
    if scale == 1:
        assert got.tolist() == [[10.25, 20.0, 30.0, 60.0], [0.0, 1.0, 7.0, 100.0]]
    got.fill_(-1)
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("scale", [0, -1.5, float("nan"), float("inf")])
def test_a_scale_is_positive(scale: float) -> None:
    with pytest.raises(ValueError, match=r"expected a scale > 0, such as 1\.5, got"):
        enlarge_boxes(torch.rand(1, 4), scale, (10, 10))


BAD_BOXES = [
    (float("nan"), 1, 2, 3),
    (1, 2, float("inf"), 4),
    (5, 1, 5, 9),
    (1, 9, 5, 3),
    (-9, 1, 0, 9),
    (WIDTH, 1, WIDTH + 5, 9),
    (1, -4, 9, 0),
    (1, HEIGHT, 9, HEIGHT + 1),
]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_bad_boxes_are_named(box, image: np.ndarray) -> None:
    boxes = torch.tensor([(1, 2, 3, 4), box, box], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"finite boxes .* 320 pixels wide and 240 high") as error:
        crop_and_resize(image, boxes, 8)
    values = ", ".join(f"{corner:g}" for corner in box)
    assert f"box 1 of 3 is ({values})" in str(error.value)
    assert "valid_boxes(boxes, (240, 320))" in str(error.value)
    valid = valid_boxes(boxes, (HEIGHT, WIDTH))
    assert valid.dtype == torch.bool
    assert valid.tolist() == [True, False, False]
    assert valid_boxes(boxes.numpy(), (HEIGHT, WIDTH)).tolist() == [True, False, False]
    assert len(crop_and_resize(image, boxes[valid], 8)) == 1


def test_valid_boxes_of_none() -> None:
    assert valid_boxes(torch.empty(0, 4), (3, 3)).shape == (0,)


@pytest.mark.parametrize("shape", [(4,), (0,), (2, 5), (1, 2, 4)])
def test_boxes_have_four_columns(shape: tuple[int, ...], image: np.ndarray) -> None:
    for call in (
        lambda boxes: crop_and_resize(image, boxes, 8),
        lambda boxes: enlarge_boxes(boxes, 1.5, (10, 10)),
        lambda boxes: valid_boxes(boxes, (10, 10)),
    ):
        with pytest.raises(
            ValueError, match=r"boxes of shape \(R, 4\), got .*for no boxes, \(0, 4\)"
        ) as error:
            call(torch.zeros(shape))
        assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((8, 8, 3), np.float32), "(8, 8, 3) and float32"),
        (np.zeros((3, 8, 9), np.uint8), "(3, 8, 9) and uint8"),
        (np.zeros((8, 8), np.uint8), "(8, 8) and uint8"),
        (np.zeros((0, 8, 3), np.uint8), "(0, 8, 3) and uint8"),
        (torch.zeros(8, 8, 4, dtype=torch.uint8), "(8, 8, 4) and uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.int8), "(8, 8, 3) and int8"),
        (Image.new("RGB", (8, 8)), "() and Image"),
    ],
)
def test_images_are_rgb_bytes(image, got: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(height, width, 3\) and uint8, RGB") as error:
        crop_and_resize(image, torch.empty(0, 4), 8)
    assert f"got {got}." in str(error.value)
    assert "numpy.asarray(" in str(error.value)


def test_modes_and_sizes(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mode of stretch, pad, clip, got 'squash'"):
        crop_and_resize(image, torch.empty(0, 4), 8, "squash")
    with pytest.raises(ValueError, match="size of at least 1 pixel, such as 224, got 0"):
        crop_and_resize(image, torch.empty(0, 4), 0)


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "BICUBIC", ""])
def test_other_interpolations_are_refused(interpolation: str, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"of bicubic, bilinear, got '{interpolation}'"):
        crop_and_resize(image, torch.empty(0, 4), 8, interpolation=interpolation)
