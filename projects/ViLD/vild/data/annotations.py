"""Decode, validate and normalise annotations in COCO or LVIS format.

The dataset checker, registration, training and evaluation all use :func:`decode_annotations`, so
they see the same objects and report the same problems.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from vild.data.coco_format import (
    Annotation,
    CategoryEntry,
    Id,
    ImageEntry,
    decode_file,
    find_id,
    id_order,
    paused_collection,
    plain_number,
)
from vild.data.masks import box_of, check_segmentation
from vild.data.problems import Findings, Problem
from vild.data.prompts import MAX_NAME_LENGTH, clean_name

logger = logging.getLogger(__name__)

# LVIS thresholds in number of training images: rare <= 10 < common <= 100 < frequent
RARE_IMAGES, COMMON_IMAGES = 10, 100
# Masks are compared with their boxes to detect exports in which the two disagree.
COMPARED, FEWEST, LOOSE = 10_000, 10, 0.2  # maximum and minimum number of annotations; IoU
SLACK = 1.0  # pixels that a box may extend beyond its image without a warning
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")  # per-image lists of LVIS

_T = TypeVar("_T")


@dataclass(frozen=True)
class Category:
    """One class of a dataset.

    Attributes:
        id: the id in the json.
        name: the name in the json.
        synonyms: all names; the first one is ``name``.
        frequency: ``r``, ``c`` or ``f``.
        image_count: training images with at least one instance, or None if unknown.
    """

    id: Id
    name: str
    synonyms: tuple[str, ...]
    frequency: str
    image_count: int | None


@dataclass(frozen=True)
class Annotations:
    """Validated and normalised contents of an annotation file.

    Attributes:
        findings: problems found and values normalised.
        images: in ascending order of their ids.
        objects: in the file's order, without unusable ones.
        categories: in ascending order of their ids.
        root: the category that only groups the others, as Roboflow writes it, or None.
        listed: number of annotations in the file, including unusable ones.
    """

    findings: Findings
    images: list[ImageEntry]
    objects: list[Annotation]
    categories: list[Category]
    root: Id | None
    listed: int

    @property
    def path(self) -> str:
        """Path of the file."""
        return self.findings.where


def read_annotations(
    json_file: str | os.PathLike[str], crowds_are_objects: bool = False
) -> Annotations:
    """Read annotations and raise on errors; log warnings and notes.

    Args:
        json_file: annotations in COCO or LVIS format.
        crowds_are_objects: treat ``iscrowd: 1`` as a single object, as CVAT means it.

    Raises:
        ValueError: the file is missing or has errors; the message gives the first one.
    """
    found = decode_annotations(json_file, crowds_are_objects)
    problems = found.findings.problems()
    errors = [problem.text for problem in problems if problem.severity == "error"]
    if errors:
        more = f" ({len(errors) - 1} more; datasets/check_datasets.py lists them)"
        raise ValueError(errors[0] + (more if len(errors) > 1 else ""))
    for problem in problems:
        _log_once(problem)
    return found


@cache  # log once, although training and evaluation read the same file
def _log_once(problem: Problem) -> None:
    level = logging.WARNING if problem.severity == "warning" else logging.INFO
    logger.log(level, "%s", problem.text)


@paused_collection()
def decode_annotations(
    json_file: str | os.PathLike[str], crowds_are_objects: bool = False
) -> Annotations:
    """Read annotations without raising on bad entries; see ``findings`` of the result.

    Args:
        json_file: annotations in COCO or LVIS format.
        crowds_are_objects: see :func:`read_annotations`.

    Raises:
        ValueError: the file is missing or is not an annotation file.
    """
    path = Path(json_file)
    findings = Findings(str(path))
    contents = decode_file(path, findings)
    listed = len(contents.annotations)
    images = _images(contents.images, findings)
    entries = _categories(contents.categories, findings)
    for image in images.values():
        for key in FEDERATED:
            if any(find_id(entries, i) is None for i in getattr(image, key) or ()):
                findings.add("lists", f"image {image.id!r}: {key}")
    objects = _objects(contents.annotations, images, entries, crowds_are_objects, findings)
    root = _root(entries, objects)
    if root is not None:
        findings.add("root", entries[root].name)
    categories = _counted(entries, root, objects, findings)
    _plausible(objects, findings)
    ordered = sorted(images.values(), key=lambda image: id_order(image.id))
    return Annotations(findings, ordered, objects, categories, root, listed)


def _images(entries: list[ImageEntry], findings: Findings) -> dict[Id, ImageEntry]:
    findings.add("image_ids", *repeated(image.id for image in entries))
    for image in entries:
        if not image.path:
            findings.add("image_paths", image.id)
    return {image.id: image for image in entries}


def _categories(entries: list[CategoryEntry], findings: Findings) -> dict[Id, CategoryEntry]:
    for entry in entries:
        entry.id = plain_number(entry.id)
        if not clean_name(entry.name) or len(entry.name) > MAX_NAME_LENGTH:
            findings.add("names", entry.id)
        if not entry.name.isprintable():
            findings.add("names", f"{entry.id} ({entry.name!a})")
        if entry.frequency not in (None, "", "r", "c", "f"):
            findings.add("frequencies", f"{entry.name!r}: {entry.frequency!r}")
    findings.add("category_ids", *repeated(entry.id for entry in entries))
    return {entry.id: entry for entry in sorted(entries, key=lambda entry: id_order(entry.id))}


def _objects(
    annotations: list[Annotation],
    images: Mapping[Id, ImageEntry],
    categories: Mapping[Id, CategoryEntry],
    crowds_are_objects: bool,
    findings: Findings,
) -> list[Annotation]:
    """Return the usable annotations with all fields filled in."""
    kept = []
    ids: set[Id] = set()
    seen: set[tuple[Any, ...]] = set()
    for index, item in enumerate(annotations):
        image_id, category_id = (
            find_id(images, item.image_id),
            find_id(categories, item.category_id),
        )
        if image_id is None:
            findings.add("images", _label(index, item, f"image {item.image_id!r}"))
            continue
        if category_id is None:
            findings.add("classes", _label(index, item, f"class {item.category_id!r}"))
            continue
        item.image_id, item.category_id = image_id, category_id
        if item.id is None or item.id in ids:
            findings.count("annotation_ids")
        else:
            ids.add(item.id)
        image = images[image_id]
        if item.iscrowd and crowds_are_objects:
            item.iscrowd = 0
        if item.segmentation:
            try:
                item.segmentation = check_segmentation(item.segmentation, image.height, image.width)
            except ValueError as error:
                findings.add("masks", _label(index, item, str(error)))
                item.segmentation = None
        else:
            item.segmentation = None
        if _complete(item, index, image, findings):
            kept.append(item)
            mask = item.segmentation
            shape = tuple(mask[0]) if isinstance(mask, list) else mask and mask.counts
            key = (item.image_id, item.category_id, shape, *(item.bbox or ()))
            if key in seen:
                findings.add("repeated", _label(index, item))
            seen.add(key)
    return kept


def _label(index: int, item: Annotation, note: str = "") -> str:
    known = f" (id {item.id})" if item.id is not None else ""
    return f"annotations[{index}]{known}" + (f": {note}" if note else "")


def _complete(item: Annotation, index: int, image: ImageEntry, findings: Findings) -> bool:
    """Return whether the box is usable; fill in a missing box and a missing area."""
    if not item.bbox:
        if item.segmentation is None:
            findings.add("boxes", _label(index, item, "neither box nor mask"))
            return False
        item.bbox = box_of(item.segmentation)
        findings.count("mask_boxes")
    box = item.bbox
    if len(box) != 4 or not isfinite(sum(box)):
        findings.add("boxes", _label(index, item, f"bbox {box}"))
        return False
    x, y, width, height = box
    if width <= 0 or height <= 0:
        findings.add("negative" if min(width, height) < 0 else "empty", _label(index, item))
        if min(width, height) < 0:
            return False
    elif x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        findings.add("off_image", _label(index, item))
        return False
    elif min(x, y) < -SLACK or x + width > image.width + SLACK or y + height > image.height + SLACK:
        findings.add("outside", _label(index, item))
    if item.area is None or not 0 <= item.area < float("inf"):
        item.area = width * height
        findings.count("areas")
    return True


def _overlap(one: list[float], other: list[float]) -> float:
    """Return the IoU of two boxes (x, y, width, height)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else 1.0


def _root(entries: Mapping[Id, CategoryEntry], objects: list[Annotation]) -> Id | None:
    """Return the id of Roboflow's first category, which groups all others and has no objects."""
    used = {item.category_id for item in objects}
    grouped = Counter(entry.supercategory for entry in entries.values())
    for key, entry in entries.items():
        groups_all = grouped[entry.name] >= len(entries) - 1 > 0
        if groups_all and key not in used and entry.supercategory in (None, "", "none"):
            return key
    return None


def _counted(
    entries: Mapping[Id, CategoryEntry],
    root: Id | None,
    objects: list[Annotation],
    findings: Findings,
) -> list[Category]:
    """Return the classes; count frequencies and images where the json does not give them."""
    if not entries:
        findings.count("no_classes")
    by_prompt: dict[str, list[str]] = defaultdict(list)
    for key, entry in entries.items():
        if entry.name.strip() and key != root:
            by_prompt[clean_name(entry.name)].append(entry.name)
    for names in by_prompt.values():
        if len(names) > 1:
            findings.add("same_names", " and ".join(map(repr, names)))
    images_of: dict[Id, set[Id]] = defaultdict(set)
    if any(not e.frequency or e.image_count is None for e in entries.values()):
        for item in objects:
            images_of[item.category_id].add(item.image_id)
    made = []
    for key, entry in entries.items():
        count = len(images_of[key]) if entry.image_count is None else entry.image_count
        frequency = entry.frequency or frequency_of(count)
        synonyms = tuple(dict.fromkeys([entry.name, *(entry.synonyms or ())]))
        made.append(Category(key, entry.name, synonyms, frequency, count))
    return made


def _plausible(objects: list[Annotation], findings: Findings) -> None:
    """Report annotations that are well formed but implausible."""
    extents = [
        _overlap(box_of(item.segmentation), item.bbox)
        for item in objects[:COMPARED]
        if isinstance(item.segmentation, list) and item.bbox
    ]
    loose = sum(overlap < LOOSE for overlap in extents)
    if len(extents) >= FEWEST and 2 * loose > len(extents):
        findings.count("loose_masks", loose)
    findings.count("maskless", sum(item.segmentation is None for item in objects))
    crowds = sum(item.iscrowd for item in objects)
    if crowds and 2 * crowds > len(objects):
        findings.count("crowds", crowds)
    fractions = sum(map(_is_fraction, objects))
    if fractions:
        findings.count("all_fractions" if fractions == len(objects) else "fractions", fractions)


def _is_fraction(item: Annotation) -> bool:
    x, y, width, height = item.bbox or (0, 0, 0, 0)
    return x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 1 and y + height <= 1


def repeated(values: Iterable[_T]) -> list[_T]:
    """Return the values that occur more than once, in order of first appearance."""
    return [value for value, times in Counter(values).items() if times > 1]


def frequency_of(image_count: int) -> str:
    """Return LVIS's frequency group of a class with ``image_count`` training images."""
    if image_count <= RARE_IMAGES:
        return "r"
    return "c" if image_count <= COMMON_IMAGES else "f"
