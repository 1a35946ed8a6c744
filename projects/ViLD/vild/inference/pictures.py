"""Writes one file an image: its ground truth beside what was detected."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from vild.data import Vocabulary, read_image
from vild.data.files import atomic_path
from vild.inference.drawing import NOVEL_MARK, draw_detections, draw_ground_truth, side_by_side

SUFFIXES = (".jpg", ".png")


class PictureWriter:
    """Writes ``<image id>.jpg`` for every image that it is given.

    Attributes:
        folder: where they go; it is made.
        written: how many images were written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        records: Iterable[Mapping[str, Any]] = (),
        threshold: float = 0.3,
        *,
        limit: int = 100,
        suffix: str = ".jpg",
    ) -> None:
        """Make the folder.

        Args:
            folder: where the images go.
            vocabulary: names and novel flags of the classes.
            records: the dataset in Detectron2's format, for the ground truth. Of an image that
                is not among them, or has no annotations at all, the detections alone are drawn.
            threshold: lowest score that is drawn.
            limit: most detections that are drawn in an image.
            suffix: one of :data:`SUFFIXES`.

        Raises:
            ValueError: another suffix.
            OSError: the folder cannot be made.
        """
        if suffix not in SUFFIXES:
            raise ValueError(f"expected pictures as one of {SUFFIXES}, got {suffix!r}")
        self.folder, self.written = Path(folder), 0
        self._vocabulary, self._suffix = vocabulary, suffix
        self._threshold, self._limit = threshold, limit
        self._records = {record["image_id"]: record for record in records}
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, given: Mapping[str, Any], instances: Instances) -> Path:
        """Draw and write one image.

        Args:
            given: the model's input or a record: ``image_id`` and, unless the dataset's records
                know it, ``file_name``. The image is read from its file: what a model is given
                has been resized.
            instances: its detections on the CPU, at the size of the file's image; see
                :func:`vild.inference.draw_detections`.

        Returns:
            the file.

        Raises:
            ValueError: the image cannot be read, or does not fit the detections.
            OSError: the file cannot be written.
        """
        if "image_id" not in given:
            raise ValueError(f"expected an image_id, got {sorted(given)}")
        record = self._records.get(given["image_id"], {})
        source = given.get("file_name", record.get("file_name"))
        if source is None:
            raise ValueError(
                f"expected the file_name of image {given['image_id']}, got {sorted(given)}"
            )
        picture = read_image(source)
        drawn = draw_detections(
            picture, instances, self._vocabulary, threshold=self._threshold, limit=self._limit
        )
        if "annotations" in record:
            # the star is explained where there is room: base classes alone need no word about it
            mark = f"   ({NOVEL_MARK} novel)" if any(self._vocabulary.novel) else ""
            shown = min(int((instances.scores >= self._threshold).sum()), self._limit)
            titles = (
                f"ground truth: {len(record['annotations'])}{mark}",
                f"detections: {shown}, score ≥ {self._threshold:g}",
            )
            drawn = side_by_side(
                draw_ground_truth(picture, record, self._vocabulary), drawn, titles
            )
        target = self.folder / f"{safe_stem(given['image_id'])}{self._suffix}"
        _save(drawn, target)
        self.written += 1
        return target


def _save(picture: np.ndarray, target: Path) -> None:
    # full resolution for colours, or names would have fringes
    options: dict[str, Any] = {"quality": 90, "subsampling": 0} if target.suffix == ".jpg" else {}
    with atomic_path(target) as temporary:
        Image.fromarray(picture).save(temporary, **options)


def safe_stem(image_id: object) -> str:
    """A file name for an image id; different ids have different names.

    Args:
        image_id: a number, or text of any kind ("street/0001").

    Returns:
        the id itself where that is a plain name, else its letters and digits with a short hash.
    """
    text = str(image_id)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:80]
    if plain and plain == text:
        return text
    return f"{plain or 'image'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
