"""The images of a split, recorded in stores and checked when they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.storage.layout import ImageId


@dataclass(frozen=True)
class SplitImages:
    """The images of a split, usable in processes where it is not registered.

    Attributes:
        split: name of the dataset.
        files: path of every image id.
        sha256: see :func:`split_digest`.
    """

    split: str
    files: dict[ImageId, str]
    sha256: str

    @classmethod
    def from_records(cls, split: str, records: Sequence[Mapping[str, Any]]) -> SplitImages:
        """Collect the images from a split's records in Detectron2's format.

        Raises:
            ValueError: there are no images, or an id occurs twice.
        """
        if not records:
            raise ValueError(f"expected images in {split}, got none")
        files: dict[ImageId, str] = {}
        for record in records:
            image = record["image_id"]
            if image in files:
                raise ValueError(
                    f"{split}: expected unique image ids, got {image!r} more than once. Give every "
                    "image a different id"
                )
            files[image] = str(record["file_name"])
        return cls(split, files, split_digest(split, records))


def split_digest(split: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a sha256 that identifies the images of a split.

    Ids alone are not enough, since exports number the images of each split from 0 or 1. The digest
    covers id, file name, height and width of every image, in any order. It stays the same if the
    dataset is moved to another folder or loses annotations (``X_train`` and ``X_train_base``).

    Args:
        split: name of the dataset; file names are relative to the ``image_root`` of its metadata.
            Without an ``image_root``, the names of the file and of its folder are used.
        records: in Detectron2's format; ``height`` and ``width`` may be absent.
    """
    root = image_root(split)
    lines = sorted(
        json.dumps(
            [
                record["image_id"],
                _relative(record["file_name"], root),
                record.get("height"),
                record.get("width"),
            ]
        )
        for record in records
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def image_root(split: str) -> str | None:
    """Return the image folder of a registered split; None if the split or its folder is unknown."""
    if split not in DatasetCatalog:  # the metadata catalogue would create an entry
        return None
    root = MetadataCatalog.get(split).get("image_root")
    return os.path.abspath(root) if root else None


def _relative(file: str | os.PathLike[str], root: str | None) -> str:
    path = Path(os.path.abspath(file))
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return "/".join(path.parts[-2:])
