"""Thin images keep at least one pixel per side, and cropping does not need shapely."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.env import seed_all_rng
from PIL import Image

from vild.config import add_vild_config
from vild.data.augmentations import RandomCrop, ResizeShortestEdge, for_any_shape, visible_boxes
from vild.data.dataset_mapper import ViLDDatasetMapper

THIN = [(1, 5000), (5000, 1), (2, 9000), (1, 1)]


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize(
    "augmentation",
    [
        T.ResizeShortestEdge(800, 1333),
        T.ResizeShortestEdge((64, 96), 200, "range"),
        T.RandomCrop("relative", (0.3, 0.3)),
        T.RandomCrop("relative_range", (0.1, 0.1)),
        T.RandomCrop("absolute", (50, 60)),
        T.RandomCrop("absolute_range", (5, 60)),
    ],
)
def test_a_thin_image_keeps_a_pixel(size: tuple[int, int], augmentation: T.Augmentation) -> None:
    seed_all_rng(0)
    (apply,) = for_any_shape([augmentation])
    for _ in range(5):
        given = T.AugInput(np.full((*size, 3), 7, np.uint8))
        transform = apply(given)
        assert min(given.image.shape) >= 1
        assert (given.image == 7).all()
        box = transform.apply_box(np.array([[0.0, 0.0, size[1], size[0]]]))
        assert np.isfinite(box).all()


@pytest.mark.parametrize(
    "augmentation",
    [T.ResizeShortestEdge((30, 50), 90, "range"), T.RandomCrop("relative_range", (0.3, 0.3))],
)
def test_other_images_are_augmented_as_by_detectron2(augmentation: T.Augmentation) -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    (own,) = for_any_shape([augmentation])
    assert type(own) in (ResizeShortestEdge, RandomCrop)
    assert repr(own) == repr(augmentation)
    for seed in range(5):
        results = []
        for apply in (augmentation, own):
            seed_all_rng(seed)
            given = T.AugInput(image)
            apply(given)
            results.append(given.image)
        np.testing.assert_array_equal(*results)


def test_ones_own_augmentations_are_left_alone() -> None:
    class Own(T.RandomCrop):
        pass

    given = [Own("absolute", (3, 3)), T.RandomFlip()]
    assert for_any_shape(given) == given


def config(**changes: Any) -> CfgNode:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 100
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def record(folder: Path, height: int, width: int, *polygons: list[float]) -> dict[str, Any]:
    file = folder / f"{height}x{width}.png"
    Image.new("RGB", (width, height)).save(file)
    annotations = []
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2))
        box = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
        own = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        annotations.append({**own, "segmentation": [polygon]})
    sizes = {"height": height, "width": width}
    return {"file_name": str(file), "image_id": 1, **sizes, "annotations": annotations}


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("crop", [False, True])
def test_training_on_thin_images(tmp_path: Path, size: tuple[int, int], crop: bool) -> None:
    height, width = size
    outline = [0.0, 0.0, width, 0.0, width, height, 0.0, height]
    given = record(tmp_path, height, width, outline)
    for is_train in (True, False):
        apply = ViLDDatasetMapper(config(INPUT__CROP__ENABLED=crop), is_train)
        for seed in range(5):
            seed_all_rng(seed)
            mapped = apply(given)
            assert min(mapped["image"].shape) >= 1
            if is_train:
                assert len(mapped["instances"]) == 1


DIAMOND = [40.0, 0.0, 80.0, 30.0, 40.0, 60.0, 0.0, 30.0]
SQUARE = [50.0, 30.0, 60.0, 30.0, 60.0, 40.0, 50.0, 40.0]


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
def test_crops_of_polygons_need_no_further_package(
    tmp_path: Path, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    given = record(tmp_path, 60, 80, DIAMOND, SQUARE)
    changes = {"INPUT__CROP__ENABLED": True, "INPUT__CROP__SIZE": [0.3, 0.3]}
    apply = ViLDDatasetMapper(config(INPUT__MASK_FORMAT=masks, **changes), True)
    counts = set()
    for seed in range(12):
        seed_all_rng(seed)
        mapped = apply(given)
        height, width = mapped["image"].shape[1:]
        instances = mapped["instances"]
        boxes = instances.gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        drawn = instances.gt_masks.crop_and_resize(boxes, 28).float()
        assert (drawn.mean(dim=(1, 2)) > 0.2).all()
        counts.add(len(instances))
    assert counts == {1, 2}  # the square is outside of some crops


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_what_is_shown(seed: int) -> None:
    """Compare with the pixel centres inside the outline, to within a pixel of a fine grid."""
    draw = np.random.default_rng(seed)
    grid = 8
    for _ in range(20):
        angles = np.sort(draw.uniform(0, 2 * np.pi, 7))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = draw.uniform(-10, 50, 2) + corners * draw.uniform(8, 40, (7, 1))
        fine = PolygonMasks([[(outline * grid).reshape(-1)]])
        canvas = torch.tensor([[0.0, 0, 40 * grid, 40 * grid]])
        pixels = fine.crop_and_resize(canvas, 40 * grid)[0].nonzero()
        (found,) = visible_boxes(PolygonMasks([[outline.reshape(-1)]]), (40, 40)).tensor
        if len(pixels) < 30 * grid:
            continue
        low, high = pixels.amin(dim=0).flip(0) / grid, (pixels.amax(dim=0).flip(0) + 1) / grid
        torch.testing.assert_close(found, torch.cat([low, high]), rtol=0, atol=4 / grid)  # tips


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        ([-9, -9, 99, -9, 99, 99, -9, 99], [0, 0, 40, 30]),  # it contains the whole image
        ([5, 5, 20, 5, 20, 20], [5, 5, 20, 20]),
        ([-20, 10, 20, 10, 20, 20, -20, 20], [0, 10, 20, 20]),
        ([30, -20, 60, 10, 30, 10], [30, 0, 40, 10]),
        ([50, 5, 70, 5, 60, 9], [0, 0, 0, 0]),
        ([0, 0, 40, 0, 40, 30, 0, 30], [0, 0, 40, 30]),
    ],
)
def test_known_boxes(outline: list[float], expected: list[float]) -> None:
    masks = PolygonMasks([[np.array(outline, float)], []])
    assert visible_boxes(masks, (30, 40)).tensor.tolist() == [expected, [0, 0, 0, 0]]


def test_without_cropping_boxes_are_detectron2s(tmp_path: Path) -> None:
    given = record(tmp_path, 60, 80, DIAMOND, SQUARE)
    results: list[Callable[..., Any]] = []
    for kind in (DatasetMapper, ViLDDatasetMapper):
        seed_all_rng(3)
        results.append(kind(config(), True)(given)["instances"].gt_boxes.tensor)
    assert torch.equal(*results)
