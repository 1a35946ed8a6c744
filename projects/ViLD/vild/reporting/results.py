"""Conversion of results files to Detectron2's Instances."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from vild.data.coco_format import Id, find_id
from vild.data.masks import box_of, check_segmentation, decode_segmentation
from vild.evaluation.results import Detection, iterate_detections

logger = logging.getLogger(__name__)


def read_results_by_image(
    path: str | os.PathLike[str],
    image_ids: Iterable[Id],
    category_ids: Iterable[Id],
) -> dict[Id, list[Detection]]:
    """Read a results file and group it by image.

    Args:
        path: json in COCO's results format.
        image_ids: image ids of the dataset.
        category_ids: category ids of the dataset, as in its json.

    Returns:
        image id -> its detections, in the file's order.

    Raises:
        ValueError: see :func:`vild.evaluation.results.iterate_detections`; or no detection has a
            class of the dataset. If only some detections have unknown classes, they are skipped
            with a warning.
    """
    classes = frozenset(category_ids)
    found: dict[Id, list[Detection]] = defaultdict(list)
    others: Counter[Id] = Counter()
    for item in iterate_detections(path, frozenset(image_ids), None, "the dataset"):
        category_id = find_id(classes, item.category_id)
        if category_id is None:
            others[item.category_id] += 1
        else:
            item.category_id = category_id
            found[item.image_id].append(item)
    if others:
        message = (
            f"{Path(path)}: {others.total()} detections have classes that the dataset lacks, "
            f"category_id {', '.join(f'{key!r:.60}' for key in [*others][:5])}"
        )
        if not found:
            raise ValueError(f"{message}, and no others. Are these results of that dataset?")
        logger.warning("%s. They are ignored", message)
    return dict(found)


def instances_from_results(
    detections: Sequence[Detection],
    image_size: tuple[int, int],
    dataset_id_to_contiguous: Mapping[Id, int],
) -> Instances:
    """Convert the detections of one image to Detectron2's Instances, in the same order.

    Args:
        detections: N detections. A missing box is computed from the mask.
        image_size: height and width of the image in pixels.
        dataset_id_to_contiguous: category id in the json -> row of the vocabulary.

    Returns:
        ``pred_boxes`` float32 xyxy, ``scores`` float32, ``pred_classes`` int64, and ``pred_masks``
        (N, height, width) bool if the detections have masks.

    Raises:
        ValueError: a mask has another size or cannot be decoded, or only some detections have
            masks.
    """
    height, width = image_size
    masks = [
        check_segmentation(d.segmentation, height, width, may_be_empty=True)
        for d in detections
        if d.segmentation is not None
    ]
    if masks and len(masks) < len(detections):
        raise ValueError(
            "expected a segmentation in every detection of an image or in none, got "
            f"{len(masks)} among {len(detections)}"
        )
    decoded = [decode_segmentation(mask, height, width) for mask in masks]
    boxes = [d.bbox or box_of(masks[n]) for n, d in enumerate(detections)]
    instances = Instances((int(height), int(width)))
    xywh = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
    instances.scores = torch.tensor([d.score for d in detections], dtype=torch.float32)
    rows = [dataset_id_to_contiguous[d.category_id] for d in detections]
    instances.pred_classes = torch.tensor(rows, dtype=torch.int64)
    if decoded:
        instances.pred_masks = torch.from_numpy(np.stack(decoded))
    return instances
