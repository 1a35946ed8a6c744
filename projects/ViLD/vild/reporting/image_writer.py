"""Image files that show ground truth and detections side by side."""

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
from vild.reporting.drawing import (
    LIMIT,
    NOVEL_MARK,
    draw_detections,
    draw_ground_truth,
    side_by_side,
)
from vild.utils.files import atomic_path


class ImageWriter:
    """A writer of one ``<image id>.jpg`` per image.

    Attributes:
        folder: output folder; created if missing.
        written: number of images written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        records: Iterable[Mapping[str, Any]] = (),
        threshold: float = 0.3,
    ) -> None:
        """Create the folder.

        Args:
            folder: output folder.
            vocabulary: names and novel flags of the classes.
            records: the dataset in Detectron2's format, for the ground truth. For an image that is
                not among them or has no annotations, only the detections are drawn.
            threshold: minimum score.

        Raises:
            OSError: the folder cannot be created.
        """
        self.folder, self.written = Path(folder), 0
        self._vocabulary, self._threshold = vocabulary, threshold
        self._records = {record["image_id"]: record for record in records}
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, given: Mapping[str, Any], instances: Instances) -> Path:
        """Draw and write one image.

        Args:
            given: the model's input or a record: ``image_id`` and, unless the dataset's records
                have it, ``file_name``. The image is read from its file, because the model's input
                is resized.
            instances: detections on the CPU, at the size of the file's image; see
                :func:`vild.reporting.draw_detections`.

        Returns:
            The written file.

        Raises:
            ValueError: the image cannot be read, or its size differs from that of the detections.
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
        image = read_image(source)
        drawn = draw_detections(image, instances, self._vocabulary, threshold=self._threshold)
        if "annotations" in record:
            # explain the star, unless all classes are base classes
            mark = f"   ({NOVEL_MARK} novel)" if any(self._vocabulary.novel) else ""
            shown = min(int((instances.scores >= self._threshold).sum()), LIMIT)
            titles = (
                f"ground truth: {len(record['annotations'])}{mark}",
                f"detections: {shown}, score ≥ {self._threshold:g}",
            )
            drawn = side_by_side(draw_ground_truth(image, record, self._vocabulary), drawn, titles)
        target = self.folder / f"{safe_stem(given['image_id'])}.jpg"
        save_image(drawn, target)
        self.written += 1
        return target


def save_image(image: np.ndarray, path: Path) -> None:
    """Write an image (H, W, 3) uint8 RGB in the format of the extension, atomically."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    # no chroma subsampling, which would blur the names
    options: dict[str, Any] = {"quality": 90, "subsampling": 0} if is_jpeg else {}
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, **options)


def safe_stem(image_id: object) -> str:
    """Return a safe file stem for an image id, unique per id.

    Args:
        image_id: a number, or any text ("street/0001").

    Returns:
        The id itself if it is a plain name, otherwise its letters and digits with a short hash.
    """
    text = str(image_id)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:80]
    if plain and plain == text:
        return text
    return f"{plain or 'image'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
