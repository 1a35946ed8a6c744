"""Detections with class names as json or csv, for images outside a dataset."""

from __future__ import annotations

import csv
import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from detectron2.structures import Instances

from vild.data import Vocabulary
from vild.data.files import atomic_path
from vild.data.formatting import csv_cell
from vild.evaluation import coco_results

FORMATS = (".json", ".csv")
_COLUMNS = ("file", "frame", "class", "novel", "score", "x", "y", "width", "height")


class NamedDetectionsWriter:
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
        self.path, self.vocabulary, self.detections = Path(path), vocabulary, 0
        self._kind = require_format(self.path)
        self._stack, self._images = ExitStack(), 0

    def __enter__(self) -> NamedDetectionsWriter:
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        if self._kind == ".csv":
            csv.writer(self._file).writerow(_COLUMNS)
        else:
            self._file.write("[")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._kind == ".json":
            self._file.write("\n]\n")
        self._stack.__exit__(kind, error, trace)

    def add(self, file: str, instances: Instances, frame: int | None = None) -> None:
        """Write the detections of an image, or of a frame of a video.

        Args:
            file: file name.
            instances: on the CPU: ``pred_boxes``, ``scores``, ``pred_classes`` and, for a json,
                optionally ``pred_masks``.
            frame: index of the frame, from 0.
        """
        self._images += 1
        for entry in named_detections(self._images, instances, self.vocabulary):
            if self._kind == ".csv":
                shown = "" if frame is None else frame
                numbers = [f"{v:.2f}" for v in entry["bbox"]]
                novel = int(self.vocabulary.novel[entry["category_id"] - 1])
                name = csv_cell(entry["category_name"])
                row = [csv_cell(file), shown, name, novel, f"{entry['score']:.4f}"]
                csv.writer(self._file).writerow([*row, *numbers])
            else:
                place = (
                    {"file_name": file} if frame is None else {"file_name": file, "frame": frame}
                )
                text = json.dumps({**place, **entry}, ensure_ascii=False)
                self._file.write((",\n" if self.detections else "\n") + text)
            self.detections += 1


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
