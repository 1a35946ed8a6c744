"""The annotations that detections are measured against, by class."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vild.data.annotations import read_annotation_file, repeated
from vild.evaluation.detections import Detections

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of the classes that count.

    Attributes:
        path: the json.
        images: image id -> the json's object, ascending.
        categories: category id -> the json's object, ascending; those of the vocabulary alone.
        annotations: category id -> its annotations in the json's order. The official packages
            note down their own things in them and turn polygons to run lengths.
        all_category_ids: also those outside of the vocabulary.
    """

    path: str
    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    all_category_ids: frozenset[int]

    @classmethod
    def read(cls, json_file: str | os.PathLike[str], vocabulary: Collection[int]) -> GroundTruth:
        """Read annotations in COCO or LVIS format.

        ``iscrowd`` is 0 where the json has none, ``area`` that of the box.

        Args:
            json_file: the annotations.
            vocabulary: category ids that count. Objects of others are as if not annotated.

        Raises:
            ValueError: see :func:`vild.data.read_annotation_file`; an id twice, an annotation of
                an unknown image, or a class of the vocabulary that the json lacks.
        """
        path = str(Path(json_file))
        contents = read_annotation_file(json_file)
        for section in ("images", "annotations", "categories"):
            twice = repeated(item["id"] for item in contents[section])
            if twice:
                raise ValueError(f"{path}: {section} id {twice[0]} is there more than once")
        images = {item["id"]: item for item in _ascending(contents["images"])}
        categories = {item["id"]: item for item in _ascending(contents["categories"])}
        unknown = sorted(set(vocabulary) - set(categories))
        if unknown:
            raise ValueError(
                f"{path} lacks the category id {unknown[0]} of the vocabulary of "
                f"{len(vocabulary)} classes. Is it the data set that was registered?"
            )
        annotations: dict[int, list[dict[str, Any]]] = {i: [] for i in sorted(vocabulary)}
        sizeless = 0
        for item in contents["annotations"]:
            if item["image_id"] not in images:
                raise ValueError(
                    f"{path}: annotation {item['id']} names the image {item['image_id']}, which "
                    "is not listed"
                )
            if item["category_id"] not in annotations:
                continue
            item.setdefault("iscrowd", 0)
            if "area" not in item:
                item["area"] = item["bbox"][2] * item["bbox"][3]
                sizeless += 1
            annotations[item["category_id"]].append(item)
        if sizeless:
            logger.warning(
                "%s: %d annotations have no 'area'; that of the box is taken", path, sizeless
            )
        kept = {i: categories[i] for i in annotations}
        return cls(path, images, kept, annotations, frozenset(categories))

    def __len__(self) -> int:
        return sum(map(len, self.annotations.values()))

    def instances(self, category_id: int) -> int:
        """Objects of a class, crowds left out."""
        return sum(not item["iscrowd"] for item in self.annotations[category_id])

    def check_federated(self) -> None:
        """That the json says which classes were looked for in each picture, as LVIS's does.

        Raises:
            ValueError: it does not.
        """
        for image in self.images.values():
            missing = [key for key in _FEDERATED if key not in image]
            if missing:
                raise ValueError(
                    f"{self.path}: image {image['id']} lacks {missing[0]!r}, which LVIS's "
                    "evaluation needs. Register a data set in COCO's format with evaluator_type "
                    "'coco'."
                )

    def check(self, detections: Detections, tasks: Sequence[str]) -> None:
        """That the detections are of this data set and fit the tasks.

        Raises:
            ValueError: an unknown task, or one for which the detections or the annotations have
                no boxes or masks; an unknown image or category; a mask of another size than its
                picture.
        """
        where = detections.where
        if not tasks or not set(tasks) <= set(TASKS) or len(set(tasks)) < len(tasks):
            raise ValueError(f"expected tasks among {TASKS}, each once, got {tuple(tasks)}")
        lacking = [task for task in tasks if task not in detections.tasks()]
        if lacking:
            what = {"bbox": "boxes", "segm": "masks"}[lacking[0]]
            raise ValueError(
                f"{where}: the detections have no {what}, which the task {lacking[0]!r} needs; "
                f"evaluate the tasks {detections.tasks()}"
            )
        for what, ids, known in (
            ("image", detections.image_ids, self.images),
            ("category", detections.category_ids, self.all_category_ids),
        ):
            odd = np.flatnonzero(~np.isin(ids, np.fromiter(known, np.int64, len(known))))
            if len(odd):
                raise ValueError(
                    f"{where}: detection {odd[0]} has the {what} id {ids[odd[0]]}, which "
                    f"{self.path} lacks. Are these results of that data set?"
                )
        if "segm" in tasks:
            self._check_masks(detections)

    def _check_masks(self, detections: Detections) -> None:
        for items in self.annotations.values():
            for item in items:
                if not item.get("segmentation"):
                    raise ValueError(
                        f"{self.path}: annotation {item['id']} has no 'segmentation'; evaluate "
                        "the task 'bbox' alone"
                    )
        assert detections.mask_sizes is not None
        ids = np.fromiter(self.images, np.int64, len(self.images))  # ascending
        sizes = np.array([(i["height"], i["width"]) for i in self.images.values()])
        if not len(detections):
            return
        expected = sizes[np.searchsorted(ids, detections.image_ids)]
        odd = np.flatnonzero((expected != detections.mask_sizes).any(axis=1))
        if len(odd):
            raise ValueError(
                f"{detections.where}: the mask of detection {odd[0]} has the size "
                f"{detections.mask_sizes[odd[0]].tolist()}, its image "
                f"{detections.image_ids[odd[0]]} has {expected[odd[0]].tolist()} (height, width)"
            )


def _ascending(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: item["id"])
