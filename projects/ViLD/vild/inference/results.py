"""Detections as files of the COCO and LVIS result format, back as Detectron2's instances."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances

from vild.inference.drawing import decode_segmentation

Entry = Mapping[str, Any]


def read_results_by_picture(
    path: str | os.PathLike[str], image_ids: Collection[Any], category_ids: Collection[int]
) -> dict[Any, list[dict[str, Any]]]:
    """Read a file of results and sort it by picture.

    Args:
        path: json, a list of ``{image_id, category_id, score, bbox, segmentation}``.
        image_ids: pictures of the data set.
        category_ids: classes of the data set, as in its json.

    Returns:
        image id -> its results, in the file's order.

    Raises:
        ValueError: the file is missing, of another form, or names a picture or a class that the
            data set lacks.
    """
    path = Path(path)
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected results at {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a json file ({error})") from None
    if not isinstance(contents, list):
        keys = f" with the keys {sorted(contents)[:8]}" if isinstance(contents, dict) else ""
        raise ValueError(
            f"{path}: expected a list of results, got a {type(contents).__name__}{keys}: name the "
            "file of detections, not of annotations or metrics"
        )
    known, classes = set(image_ids), set(category_ids)
    found = defaultdict(list)
    for index, entry in enumerate(contents):
        wanted = ("image_id", "category_id", "score")
        lacking = [k for k in wanted if not isinstance(entry, dict) or k not in entry]
        if lacking:
            raise ValueError(f"{path}: result {index} has no {lacking[0]!r}: {entry!r:.80}")
        for key, members in (("image_id", known), ("category_id", classes)):
            if entry[key] not in members:
                raise ValueError(
                    f"{path}: result {index} has the {key} {entry[key]!r}, which the data set "
                    "lacks: these are results on another one"
                )
        found[entry["image_id"]].append(entry)
    return dict(found)


def instances_from_results(
    results_of_one_picture: Sequence[Entry],
    image_size: tuple[int, int],
    dataset_id_to_contiguous: Mapping[int, int],
) -> Instances:
    """Detectron2's instances from results in COCO's or LVIS's format.

    Args:
        results_of_one_picture: N results: ``category_id``, ``score``, ``bbox`` (x, y, width,
            height) and optionally ``segmentation`` (an RLE or polygons). A result without a box
            gets that of its mask.
        image_size: height and width of the picture.
        dataset_id_to_contiguous: the json's category id -> row of the vocabulary.

    Returns:
        ``pred_boxes`` float32 xyxy, ``scores`` float32, ``pred_classes`` int64, and ``pred_masks``
        (N, height, width) bool where the results have segmentations, in the order of the results.

    Raises:
        ValueError: an unknown category, a box or mask of the wrong form or size, masks for some
            results alone, or results of several pictures.
    """
    pictures = {entry.get("image_id") for entry in results_of_one_picture}
    if len(pictures) > 1:
        raise ValueError(f"expected results of one picture, got them of {len(pictures)}")
    masked = ["segmentation" in entry for entry in results_of_one_picture]
    if any(masked) and not all(masked):
        raise ValueError(
            f"expected a segmentation in every result of a picture or in none, got "
            f"{sum(masked)} among {len(masked)}"
        )
    height, width = image_size
    boxes, rows, masks = [], [], []
    for entry in results_of_one_picture:
        if entry["category_id"] not in dataset_id_to_contiguous:
            raise ValueError(
                f"the results name the category {entry['category_id']}, which the data set lacks: "
                "they are of another one"
            )
        rows.append(dataset_id_to_contiguous[entry["category_id"]])
        if "segmentation" in entry:
            masks.append(decode_segmentation(entry["segmentation"], height, width))
        box = entry.get("bbox")
        if box is None and masks:
            box = mask_util.toBbox(mask_util.encode(np.asfortranarray(masks[-1], np.uint8)))
        if box is None or len(box) != 4:
            raise ValueError(f"expected a bbox of x, y, width and height, got {box} in a result")
        x, y, w, h = map(float, box)
        boxes.append([x, y, x + w, y + h])
    instances = Instances((int(height), int(width)))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(
        [float(entry["score"]) for entry in results_of_one_picture], dtype=torch.float32
    )
    instances.pred_classes = torch.tensor(rows, dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.from_numpy(np.stack(masks))
    return instances
