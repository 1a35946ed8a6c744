"""Large-scale jitter: scale, crop position, padding, boxes and masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import PolygonMasks
from detectron2.utils.env import seed_all_rng

from vild.data.jitter import LargeScaleJitter

COLOUR = (123.675, 116.28, 103.53)


def image(height: int, width: int) -> np.ndarray:
    """Return an image whose red and green encode the original position of a pixel."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([rows, columns, 0 * rows], axis=2)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (7, 64), (64, 64)])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_every_scale_becomes_the_square(size: tuple[int, int], scale: float) -> None:
    seed_all_rng(0)
    apply = LargeScaleJitter(scale, scale, 64, COLOUR)
    given = T.AugInput(image(*size))
    transforms = apply(given)
    assert given.image.shape == (64, 64, 3)
    scaled = [round(side * round(scale * 64) / 64) for side in size]
    seen = [min(side, 64) for side in scaled]
    padding = given.image[seen[0] :].reshape(-1, 3), given.image[:, seen[1] :].reshape(-1, 3)
    for part in padding:
        np.testing.assert_array_equal(part, np.broadcast_to(np.float32(COLOUR), part.shape))
    mask = transforms.apply_segmentation(np.ones(size, np.uint8))
    assert mask[: seen[0], : seen[1]].all()
    assert mask.sum() == seen[0] * seen[1]
    # a box follows its pixels
    box = transforms.apply_box(np.array([[0.0, 0, size[1], size[0]]]))[0]
    np.testing.assert_allclose(box[2:] - box[:2], scaled[::-1])
    row, column = given.image[seen[0] // 2, seen[1] // 2, :2]
    factor = np.array(scaled) / size
    assert abs((row + 0.5) * factor[0] + box[1] - seen[0] // 2 - 0.5) <= 1
    assert abs((column + 0.5) * factor[1] + box[0] - seen[1] // 2 - 0.5) <= 1


def test_places_of_the_crop_are_independent() -> None:
    seed_all_rng(0)
    apply = LargeScaleJitter(2.0, 2.0, 32, COLOUR)
    corners = np.array(
        [-apply.get_transform(image(32, 32)).apply_box(np.zeros((1, 4)))[0, :2] for _ in range(300)]
    )
    assert corners.min() >= 0
    assert corners.max() == 31  # of a margin of 32 pixels, as in the official code
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.15


def test_scales_are_uniform_and_whole_numbers_are_rounded() -> None:
    seed_all_rng(0)
    apply = LargeScaleJitter(0.1, 2.0, 100, COLOUR)
    assert "LargeScaleJitter(smallest=0.1, largest=2.0, side=100" in repr(apply)
    sides = [apply.get_transform(image(10, 10)).transforms[0].new_w for _ in range(400)]
    assert min(sides) >= 10
    assert max(sides) <= 200
    assert abs(np.mean(sides) - 105) < 8
    small = LargeScaleJitter(0.1, 0.1, 20, COLOUR)
    given = T.AugInput(np.zeros((30, 30, 3), np.uint8))
    small(given)
    assert given.image.dtype == np.uint8
    assert given.image[-1, -1].tolist() == [124, 116, 104]


def test_a_side_is_never_empty() -> None:
    apply = LargeScaleJitter(0.1, 0.1, 64, COLOUR)
    given = T.AugInput(np.zeros((2, 3000, 3), np.uint8))
    apply(given)
    assert given.image.shape == (64, 64, 3)
    assert (given.image[0, :6] == 0).all()
    assert (given.image[1:] != 0).all()


def test_polygons_reach_beyond_the_crop_and_masks_do_not() -> None:
    """Polygons are not clipped by shapely; drawn within the clipped box, they equal the bitmap."""
    seed_all_rng(1)
    transforms = LargeScaleJitter(2.0, 2.0, 64, COLOUR).get_transform(image(64, 64))
    diamond = np.array([[32.0, 0], [64, 32], [32, 64], [0, 32]])
    rows, columns = np.mgrid[:64, :64] + 0.5
    bitmap = (abs(columns - 32) + abs(rows - 32) <= 32).astype(np.uint8)
    expected = transforms.apply_segmentation(bitmap)
    (polygon,) = transforms.apply_polygons([diamond.copy()])
    assert polygon.max() - polygon.min() > 64
    box = transforms.apply_box(np.array([[0.0, 0, 64, 64]])).clip(0, 64)
    assert box.tolist() == [[0, 0, 64, 64]]
    masks = PolygonMasks([[polygon.reshape(-1)]])
    drawn = masks.crop_and_resize(torch.from_numpy(box).float(), 64)[0].numpy()
    assert (drawn != expected).mean() < 0.05
    assert 0.2 < drawn.mean() < 0.95
