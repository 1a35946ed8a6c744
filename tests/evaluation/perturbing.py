"""Detections made from annotations: shifted, some with a wrong class, some spurious."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances

from vild.evaluation import ResultsWriter


def perturbed(
    contents: dict[str, Any],
    dataset_ids: Sequence[int],
    *,
    copies: int = 2,
    spurious: int = 3,
    crowded: int = 0,
    empty: int = 2,
    seed: int = 0,
) -> dict[int, Instances]:
    """Make detections with masks, by image id.

    Args:
        contents: annotations in COCO or LVIS format.
        dataset_ids: category ids by row; other classes get no detections.
        copies: detections per object.
        spurious: detections per image without an object.
        crowded: like ``spurious``, for the first image.
        empty: number of images without detections, the last ones.
        seed: random seed.
    """
    rng = np.random.RandomState(seed)
    rows = {category_id: row for row, category_id in enumerate(dataset_ids)}
    annotations = defaultdict(list)
    for item in contents["annotations"]:
        if item["category_id"] in rows:
            annotations[item["image_id"]].append(item)
    found = {}
    for number, image in enumerate(contents["images"]):
        height, width = image["height"], image["width"]
        masks, classes = [], []
        for item in annotations[image["id"]]:
            mask = decoded(item["segmentation"], height, width)
            for _ in range(copies):
                shift = rng.randint(-6, 7, 2)
                masks.append(np.roll(mask, shift, axis=(0, 1)))
                other = rng.rand() < 0.2
                classes.append(rng.randint(len(rows)) if other else rows[item["category_id"]])
        for _ in range(crowded if number == 0 else spurious):
            mask = np.zeros((height, width), bool)
            y, x = rng.randint(0, height - 8), rng.randint(0, width - 8)
            mask[y : y + rng.randint(4, 60), x : x + rng.randint(4, 60)] = True
            masks.append(mask)
            classes.append(rng.randint(len(rows)))
        if number >= len(contents["images"]) - empty:
            masks, classes = [], []
        found[image["id"]] = instances(masks, classes, (height, width), rng)
    return found


def instances(
    masks: Sequence[np.ndarray],
    classes: Sequence[int],
    size: tuple[int, int],
    rng: np.random.RandomState,
) -> Instances:
    """Make Instances; scores have two digits, for ties, and boxes do not fit masks exactly."""
    stacked = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.nonzero(mask)
        if len(ys):
            box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    boxes += rng.uniform(-2, 2, boxes.shape) * (boxes[:, 2:3] > 0)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    detections = Instances(size)
    detections.pred_boxes = Boxes(torch.from_numpy(boxes).float())
    detections.scores = torch.from_numpy(rng.rand(len(masks)).round(2)).float()
    detections.pred_classes = torch.tensor(list(classes)).long()
    detections.pred_masks = stacked
    return detections


def decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask_util.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return mask_util.decode(rle).astype(bool)


def write(path: Path, found: dict[int, Instances], dataset_ids: Sequence[int]) -> Path:
    with ResultsWriter(path) as writer:
        for image_id, detections in found.items():
            writer.add(image_id, detections, dataset_ids)
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
