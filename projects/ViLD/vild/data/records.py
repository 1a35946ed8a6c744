"""Convert annotations to records in Detectron2's format."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from detectron2.structures import BoxMode

from vild.data.annotations import FEDERATED, read_annotations
from vild.data.coco_format import Id, paused_collection
from vild.data.images import ImageFinder

logger = logging.getLogger(__name__)


@paused_collection()
def load_records(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    category_rows: Mapping[Id, int],
    kept_rows: Collection[int] | None = None,
    crowds_are_objects: bool = False,
) -> list[dict[str, Any]]:
    """Return records in Detectron2's standard format, sorted by image id.

    Images without remaining annotations are kept: objects of dropped classes stay in the images,
    unlabelled, as in ViLD's training.

    Args:
        json_file: annotations in COCO or LVIS format.
        image_root: folder of the images; see :class:`vild.data.images.ImageFinder`.
        category_rows: json id -> contiguous row of the classifier. Annotations of other ids are
            dropped.
        kept_rows: rows whose annotations are kept; all by default.
        crowds_are_objects: see :func:`read_annotations`.

    Returns:
        one dict per image: ``file_name``, ``image_id``, ``height``, ``width``, ``annotations``
        (``bbox`` XYWH absolute, ``bbox_mode``, ``category_id`` the row, ``iscrowd``, ``area`` and,
        for objects with a mask, ``segmentation`` as polygons or compressed RLE) and, if the json
        has them, LVIS's lists with the ids of the json.

    Raises:
        ValueError: see :func:`read_annotations`.
    """
    contents = read_annotations(json_file, crowds_are_objects)
    kept = set(category_rows.values()) if kept_rows is None else set(kept_rows)
    instances: dict[Id, list[dict[str, Any]]] = defaultdict(list)
    for item in contents.objects:
        row = category_rows.get(item.category_id)
        if row not in kept:
            continue
        instance = item.to_dict()
        instance["bbox_mode"], instance["category_id"] = BoxMode.XYWH_ABS, row
        instances[item.image_id].append(instance)
    finder = ImageFinder(image_root)
    records = []
    for image in contents.images:
        record: dict[str, Any] = {
            "file_name": finder.path(image.path),
            "image_id": image.id,
            "height": image.height,
            "width": image.width,
        }
        record |= {k: getattr(image, k) for k in FEDERATED if getattr(image, k) is not None}
        records.append({**record, "annotations": instances.pop(image.id, [])})
    logger.info("Loaded %d images from %s", len(records), json_file)
    return records
