"""Ground truth annotations by class, for the official evaluation packages."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vild.data.annotations import FEDERATED, Annotations, read_annotations
from vild.data.coco_format import Id, ImageEntry, find_id, paused_collection

TASKS = ("bbox", "segm")


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of the vocabulary's classes, in the form the official packages expect.

    The packages need ids that are numbers from 1 (annotation 0 means no match, and text cannot be
    compared with numbers), so images, classes and annotations are numbered here in the order of
    their ids. The keys of the dicts below are the ids in the json.

    Attributes:
        path: annotation file.
        images: image id -> its entry, ascending; ``id`` in the entry is the number.
        categories: category id -> its entry, ascending; only classes of the vocabulary.
        annotations: category id -> its annotations in the json's order. The official packages
            modify these dicts.
        numbers: category id -> number, including classes outside the vocabulary.
    """

    path: str
    images: dict[Id, dict[str, Any]]
    categories: dict[Id, dict[str, Any]]
    annotations: dict[Id, list[dict[str, Any]]]
    numbers: dict[Id, int]

    @classmethod
    def read(
        cls,
        json_file: str | os.PathLike[str],
        vocabulary: Collection[Id],
        crowds_are_objects: bool = False,
    ) -> GroundTruth:
        """Read annotations in COCO or LVIS format.

        Args:
            json_file: annotation file.
            vocabulary: category ids to evaluate. Objects of other classes are ignored.
            crowds_are_objects: see :func:`vild.data.read_annotations`.

        Raises:
            ValueError: see :func:`vild.data.read_annotations`; or the json lacks a class of the
                vocabulary.
        """
        return cls.from_annotations(read_annotations(json_file, crowds_are_objects), vocabulary)

    @classmethod
    @paused_collection()
    def from_annotations(cls, contents: Annotations, vocabulary: Collection[Id]) -> GroundTruth:
        """Make it from annotations that are already in memory; see :meth:`read`."""
        numbers = {category.id: n for n, category in enumerate(contents.categories, 1)}
        unknown = next((key for key in vocabulary if key not in numbers), None)
        if unknown is not None:
            raise ValueError(
                f"{contents.path} lacks the category id {unknown!r} of the vocabulary of "
                f"{len(vocabulary)} classes. Is it the dataset that was registered?"
            )
        images = {image.id: _image(image, n, numbers) for n, image in enumerate(contents.images, 1)}
        counting = set(vocabulary)
        categories = {
            c.id: {"id": numbers[c.id], "name": c.name, "frequency": c.frequency}
            for c in contents.categories
            if c.id in counting
        }
        annotations: dict[Id, list[dict[str, Any]]] = {key: [] for key in categories}
        for item in contents.objects:
            if item.category_id in annotations:
                own = item.to_dict()
                own["image_id"] = images[item.image_id]["id"]
                own["category_id"] = numbers[item.category_id]
                annotations[item.category_id].append(own)
        for number, own in enumerate(chain.from_iterable(annotations.values()), 1):
            own["id"] = number
        return cls(contents.path, images, categories, annotations, numbers)

    def __len__(self) -> int:
        return sum(map(len, self.annotations.values()))

    def by_number(self) -> dict[int, dict[str, Any]]:
        """Map image numbers to entries."""
        return {image["id"]: image for image in self.images.values()}

    def instances(self, category_id: Id) -> int:
        """Count the objects of a class, without crowds."""
        return sum(not item["iscrowd"] for item in self.annotations[category_id])

    def has_masks(self) -> bool:
        """Return whether any object has a mask."""
        return any("segmentation" in item for own in self.annotations.values() for item in own)

    def for_task(self, category_id: Id, task: str) -> list[dict[str, Any]]:
        """Return the annotations of a class for a task.

        For ``segm``, an object without a mask is ignored: a detection of it is neither a true nor
        a false positive.
        """
        own = self.annotations[category_id]
        if task == "bbox":
            return own
        return [item if "segmentation" in item else _ignored(item) for item in own]

    def check_federated(self) -> None:
        """Refuse annotations without LVIS's lists of the classes that were searched in each image.

        Raises:
            ValueError: an image lacks one of these lists.
        """
        for image_id, image in self.images.items():
            missing = [key for key in FEDERATED if key not in image]
            if missing:
                raise ValueError(
                    f"{self.path}: image {image_id} lacks {missing[0]!r}, which LVIS's "
                    "evaluation needs. Register a dataset in COCO's format with evaluator_type "
                    "'coco'."
                )

    def check_tasks(self, tasks: Sequence[str], given: Sequence[str], where: str) -> None:
        """Refuse tasks that cannot be evaluated.

        Args:
            tasks: requested tasks.
            given: tasks for which the detections have boxes or masks.
            where: source of the detections, for messages.

        Raises:
            ValueError: a task is unknown, or the detections or annotations lack the boxes or masks
                for it.
        """
        check_task_names(tasks)
        lacking = [task for task in tasks if task not in given]
        if lacking:
            what = {"bbox": "boxes", "segm": "masks"}[lacking[0]]
            raise ValueError(
                f"{where}: the detections have no {what}, which the task {lacking[0]!r} needs; "
                f"evaluate the tasks {tuple(given)}"
            )
        if "segm" in tasks and len(self) and not self.has_masks():
            raise ValueError(f"{self.path} has no masks: evaluate the task 'bbox' alone")


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise ValueError unless the tasks are ``bbox``, ``segm`` or both, each once."""
    if not tasks or not set(tasks) <= set(TASKS) or len(set(tasks)) < len(tasks):
        raise ValueError(f"expected tasks among {TASKS}, each once, got {tuple(tasks)}")


def _image(image: ImageEntry, number: int, numbers: Mapping[Id, int]) -> dict[str, Any]:
    made: dict[str, Any] = {"id": number, "height": image.height, "width": image.width}
    for key in FEDERATED:
        listed = getattr(image, key)
        if listed is not None:
            known = (find_id(numbers, category_id) for category_id in listed)
            made[key] = [numbers[category_id] for category_id in known if category_id is not None]
    return made


def _ignored(item: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = item["bbox"]
    rectangle = [x, y, x + width, y, x + width, y + height, x, y + height]
    # pycocotools ignores crowds, lvis ignores entries marked "ignore"
    return {**item, "segmentation": [rectangle], "iscrowd": 1, "ignore": 1}
