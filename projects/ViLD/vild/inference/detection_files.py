"""Detections with class names as json or csv, for images outside a dataset."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from vild.data import Vocabulary
from vild.evaluation.results import DetectionsWriter, coco_results
from vild.utils.formatting import csv_cell

FORMATS = (".json", ".csv")
_COLUMNS = ("file", "frame", "class", "novel", "score", "x", "y", "width", "height")


class NamedDetectionsWriter(DetectionsWriter):
    """An incremental, atomic writer of detections with class names.

    A ``.json`` is in COCO's results format: ``image_id`` numbers the images from 1 and
    ``category_id`` the classes of the vocabulary from 1; ``file_name`` and ``category_name`` are
    added, and ``frame`` for videos. A ``.csv`` has one row per detection, without masks; names that
    a spreadsheet would run as a formula are prefixed with an apostrophe.

    Args:
        path: file to write; its extension selects the format.
        vocabulary: names and novel flags.

    Raises:
        ValueError: the extension is neither of the two.
    """

    def __init__(self, path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
        self._is_csv = require_format(Path(path)) == ".csv"
        super().__init__(path, *(("", "") if self._is_csv else ()))
        self.vocabulary, self._images = vocabulary, 0
        if self._is_csv:
            csv.writer(self._file).writerow(_COLUMNS)

    def add(self, file: str, instances: Instances, frame: int | None = None) -> None:
        """Write the detections of an image, or of a frame of a video.

        Args:
            file: file name.
            instances: on the CPU: ``pred_boxes``, ``scores``, ``pred_classes`` and, for a json,
                optionally ``pred_masks``.
            frame: index of the frame, from 0.
        """
        self._images += 1
        entries = named_detections(self._images, instances, self.vocabulary)
        if not self._is_csv:
            source = {"file_name": file} if frame is None else {"file_name": file, "frame": frame}
            self.write_items(
                [json.dumps({**source, **entry}, ensure_ascii=False) for entry in entries]
            )
            return
        for entry in entries:
            novel = int(self.vocabulary.novel[entry["category_id"] - 1])
            csv.writer(self._file).writerow(
                [
                    *(csv_cell(file), frame, csv_cell(entry["category_name"]), novel),
                    *(f"{entry['score']:.4f}", *(f"{value:.2f}" for value in entry["bbox"])),
                ]
            )


def require_format(path: Path) -> str:
    """Return the extension of a file of detections, in lower case.

    Raises:
        ValueError: the extension is not in :data:`FORMATS`.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"expected a file of detections as one of {FORMATS}, got {path}")
    return kind


def named_detections(
    image_id: int, instances: Instances, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO's results format, with class names.

    Args:
        image_id: id of the image.
        instances: see :meth:`NamedDetectionsWriter.add`.
        vocabulary: names of the classes.

    Returns:
        One dict per detection: ``image_id``, ``category_id`` from 1, ``category_name``, ``bbox``
        (x, y, width, height), ``score`` and, if there are masks, ``segmentation`` (RLE).
    """
    ids = range(1, len(vocabulary) + 1)
    return [
        {
            **found,
            "category_name": vocabulary.names[found["category_id"] - 1],
            "bbox": [round(side, 2) for side in found["bbox"]],
            "score": round(found["score"], 5),
        }
        for found in coco_results(image_id, instances, ids)
    ]
