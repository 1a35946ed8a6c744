"""Convert proposal files of Detectron2 to a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild.data.images import read_image
from vild.proposals.detectron2_format import ImageProposals
from vild.proposals.store import FIELDS, IMAGES_PER_SHARD, KIND
from vild.storage import SplitImages, StoreWriter, store_spec


def import_proposals(
    file: Path,
    proposals: Iterable[ImageProposals],
    split: str,
    records: Sequence[dict[str, Any]],
    folder: Path,
    made_by: dict[str, str],
) -> tuple[int, int]:
    """Write proposals from an external file as a store.

    Boxes are clipped to their images and sorted by objectness. Images of the split without
    proposals are recorded as failed.

    Args:
        file: the external file; its sha256 is recorded.
        proposals: proposals of any images.
        split: name of the dataset.
        records: its records.
        folder: the store to write.
        made_by: versions of the software.

    Returns:
        (number of boxes dropped because they have no area inside the image, number of images that
        are not in the split).

    Raises:
        ValueError: no image of the file is in the split.
    """
    # Detectron2 compares ids as strings
    given = {str(own.image_id): own for own in proposals}
    images = [record["image_id"] for record in records]
    foreign = len(given.keys() - {str(image) for image in images})
    if foreign == len(given):
        raise ValueError(
            f"{file}: expected proposals of images of {split}, got none. Is it for another split?"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source = {"from": "detectron2 pickle", "sha256": digest}
    spec = store_spec(
        KIND, SplitImages.from_records(split, records), FIELDS, source, IMAGES_PER_SHARD
    )
    writer, dropped = StoreWriter(folder, spec, images), 0
    by_id = {record["image_id"]: record for record in records}
    for number in writer.pending():
        with writer.shard(number) as builder:
            for image in builder.images:
                if str(image) not in given:
                    builder.fail(image, f"no proposals in {file.name}")
                    continue
                height, width = _size(by_id[image])
                own = given[str(image)]
                boxes = np.clip(own.boxes, 0, np.array([width, height] * 2, np.float32))
                kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
                dropped += int((~kept).sum())
                boxes, objectness = boxes[kept], own.objectness[kept]
                order = np.argsort(-objectness, kind="stable")
                arrays = {"boxes": boxes[order], "objectness": objectness[order]}
                builder.add(image, height, width, arrays)
    writer.finish(made_by)
    return dropped, foreign


def _size(record: dict[str, Any]) -> tuple[int, int]:
    if "height" in record and "width" in record:
        return int(record["height"]), int(record["width"])
    height, width = read_image(record["file_name"]).shape[:2]
    return height, width
