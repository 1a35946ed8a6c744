"""Detections of results files, back as Detectron2's instances."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from vild.data.entries import Id, find_id
from vild.data.masks import box_of, decode_segmentation
from vild.evaluation.results import Detection, iterate_detections


def read_results_by_picture(
    path: str | os.PathLike[str],
    image_ids: Collection[Id],
    category_ids: Collection[Id],
) -> dict[Id, list[Detection]]:
    """Read a results file and sort it by image.

    Args:
        path: json in COCO's results format.
        image_ids: images of the data set.
        category_ids: classes of the data set, as in its json.

    Returns:
        image id -> its detections, in the file's order.

    Raises:
        ValueError: see :func:`vild.evaluation.iterate_results`; or an image or a class that the
            data set lacks.
    """
    images, classes = dict.fromkeys(image_ids), dict.fromkeys(category_ids)
    found: dict[Id, list[Detection]] = defaultdict(list)
    for index, item in enumerate(iterate_detections(path)):
        image, category = find_id(images, item.image_id), find_id(classes, item.category_id)
        if image is None or category is None:
            key = "image_id" if image is None else "category_id"
            raise ValueError(
                f"{Path(path)}: detection {index} has the {key} {getattr(item, key)!r}, which the "
                "data set lacks: these are results on another one"
            )
        item.image_id, item.category_id = image, category
        found[image].append(item)
    return dict(found)


def instances_from_results(
    detections: Sequence[Detection],
    image_size: tuple[int, int],
    dataset_id_to_contiguous: Mapping[Id, int],
) -> Instances:
    """Detectron2's instances from the detections of one image.

    Args:
        detections: N detections. One without a box gets that of its mask.
        image_size: height and width of the image in pixels.
        dataset_id_to_contiguous: the json's category id -> row of the vocabulary.

    Returns:
        ``pred_boxes`` float32 xyxy, ``scores`` float32, ``pred_classes`` int64, and ``pred_masks``
        (N, height, width) bool where the detections have masks, in their order.

    Raises:
        ValueError: an unknown category, a mask of another size or one that cannot be drawn, or
            masks for some detections alone.
    """
    height, width = image_size
    masks = [d.segmentation for d in detections if d.segmentation is not None]
    if masks and len(masks) < len(detections):
        raise ValueError(
            "expected a segmentation in every detection of an image or in none, got "
            f"{len(masks)} among {len(detections)}"
        )
    unknown = [d.category_id for d in detections if d.category_id not in dataset_id_to_contiguous]
    if unknown:
        raise ValueError(f"the data set lacks the category {unknown[0]!r}: are these its results?")
    decoded = [decode_segmentation(mask, height, width) for mask in masks]
    boxes = [d.bbox or box_of(d.segmentation or []) for d in detections]
    instances = Instances((int(height), int(width)))
    xywh = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
    instances.scores = torch.tensor([d.score for d in detections], dtype=torch.float32)
    rows = [dataset_id_to_contiguous[d.category_id] for d in detections]
    instances.pred_classes = torch.tensor(rows, dtype=torch.int64)
    if decoded:
        instances.pred_masks = torch.from_numpy(np.stack(decoded))
    return instances
