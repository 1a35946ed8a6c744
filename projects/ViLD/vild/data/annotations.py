"""Reads detection annotations in COCO or LVIS format into Detectron2's records."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)

# LVIS's own thresholds, in training images: r <= 10 < c <= 100 < f
RARE_IMAGES, COMMON_IMAGES = 10, 100
_NEEDED = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class Category:
    """One class of a data set.

    Attributes:
        id: the id that the json uses.
        name: as written in the json.
        synonyms: other names, ``name`` first.
        frequency: ``r``, ``c`` or ``f``.
        image_count: training images with at least one instance, or None if unknown.
    """

    id: int
    name: str
    synonyms: tuple[str, ...]
    frequency: str
    image_count: int | None


def read_annotation_file(json_file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a json in COCO or LVIS format.

    Returns:
        its contents; at least ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: the file is missing, is no json, or lacks what the format needs.
    """
    path = Path(json_file)
    if not path.is_file():
        raise ValueError(
            f"expected annotations at {path}, but there is no such file. Run "
            "datasets/check_datasets.py to see which files are expected where."
        )
    try:
        contents = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a json file ({error})") from None
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path}: expected a json object with the keys {', '.join(_NEEDED)}, got a "
            f"{type(contents).__name__}. Is it a results file instead of annotations?"
        )
    for section, keys in _NEEDED.items():
        if not isinstance(contents.get(section), list):
            raise ValueError(
                f"{path}: expected a list under {section!r}, as COCO's and LVIS's formats have; "
                f"got the keys {sorted(contents)}"
            )
        for index, item in enumerate(contents[section]):
            missing = [key for key in keys if not isinstance(item, dict) or key not in item]
            if missing:
                raise ValueError(
                    f"{path}: {section}[{index}] lacks {', '.join(map(repr, missing))}"
                )
    return contents


def read_categories(contents: Mapping[str, Any], where: str) -> list[Category]:
    """Classes of a json in the order of their ids.

    Frequencies and image counts are taken from the json where it has them, and counted from its
    annotations where it has not.

    Args:
        contents: what :func:`read_annotation_file` gave.
        where: the file, for messages.

    Raises:
        ValueError: no class, an id twice, a name twice or empty.
    """
    ids = [item["id"] for item in contents["categories"]]
    if not all(isinstance(i, int) for i in ids):
        odd = next(i for i in ids if not isinstance(i, int))
        raise ValueError(f"{where}: expected whole numbers as category ids, got {odd!r}")
    items = sorted(contents["categories"], key=lambda item: item["id"])
    if not items:
        raise ValueError(f"{where}: expected at least one class under 'categories', got none")
    for key in ("id", "name"):
        twice = repeated(item[key] for item in items)
        if twice:
            raise ValueError(f"{where}: the category {key} {twice[0]!r} is there more than once")
    nameless = [item["id"] for item in items if not str(item["name"]).strip()]
    if nameless:
        raise ValueError(f"{where}: the category with id {nameless[0]} has an empty name")

    images_of: dict[int, set[int]] = defaultdict(set)
    if not all("frequency" in item and "image_count" in item for item in items):
        for annotation in contents["annotations"]:
            images_of[annotation["category_id"]].add(annotation["image_id"])
    categories = []
    for item in items:
        count = int(item.get("image_count", len(images_of[item["id"]])))
        frequency = item.get("frequency") or frequency_of(count)
        if frequency not in ("r", "c", "f"):
            raise ValueError(
                f"{where}: category {item['name']!r} has frequency {frequency!r}; "
                "expected 'r', 'c' or 'f'"
            )
        name = str(item["name"])
        categories.append(Category(item["id"], name, synonyms_of(item, where), frequency, count))
    return categories


def synonyms_of(item: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The name of a json's class, then its other names.

    Args:
        item: the class, with ``name`` and maybe ``synonyms``.
        where: the file, for messages.

    Raises:
        ValueError: the synonyms are no list of names.
    """
    synonyms = item.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
        raise ValueError(
            f"{where}: expected a list of names as the synonyms of {item['name']!r}, got "
            f"{synonyms!r}"
        )
    return tuple(dict.fromkeys([str(item["name"]), *synonyms]))


def repeated(values: Iterable[Any]) -> list[Any]:
    """Values that are there more than once, in the order of their first appearance."""
    return [value for value, times in Counter(values).items() if times > 1]


def frequency_of(image_count: int) -> str:
    """LVIS's frequency group of a class seen in ``image_count`` training images."""
    if image_count <= RARE_IMAGES:
        return "r"
    return "c" if image_count <= COMMON_IMAGES else "f"


def load_records(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    category_rows: Mapping[int, int],
    kept_rows: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """Records in Detectron2's standard format, sorted by image id.

    Images stay even where no annotation does: objects of dropped classes are in the pictures,
    unlabelled, as ViLD's training wants them.

    Args:
        json_file: annotations in COCO or LVIS format.
        image_root: folder of the pictures. A picture's path below it is its ``file_name``, or, as
            in LVIS, the last two parts of its ``coco_url``.
        category_rows: json id -> contiguous row of the classifier. Annotations of other ids are
            left out.
        kept_rows: rows whose annotations are kept; all by default.

    Returns:
        one dict a picture: ``file_name``, ``image_id``, ``height``, ``width``, ``annotations``
        (``bbox`` XYWH absolute, ``bbox_mode``, ``category_id`` the row, ``iscrowd``,
        ``segmentation`` as polygons or compressed RLE) and, where the json has them,
        ``neg_category_ids`` and ``not_exhaustive_category_ids`` (as the json's ids, which LVIS's
        evaluator wants).

    Raises:
        ValueError: the file is missing or malformed, or an annotation names an unknown image.
    """
    contents = read_annotation_file(json_file)
    kept = set(category_rows.values()) if kept_rows is None else set(kept_rows)
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for item in contents["annotations"]:
        if item["id"] in seen:
            raise ValueError(f"{json_file}: annotation id {item['id']} is there more than once")
        seen.add(item["id"])
        annotations[item["image_id"]].append(item)

    twice = repeated(image["id"] for image in contents["images"])
    if twice:
        raise ValueError(f"{json_file}: image id {twice[0]} is there more than once")
    records = []
    for image in sorted(contents["images"], key=lambda item: item["id"]):
        record: dict[str, Any] = {
            "file_name": os.path.join(image_root, relative_path(image, str(json_file))),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key in image:
                record[key] = image[key]
        instances = []
        for item in annotations.pop(image["id"], ()):
            row = category_rows.get(item["category_id"])
            instance = _instance(item, row, image) if row in kept else None
            if instance is not None:
                instances.append(instance)
        record["annotations"] = instances
        records.append(record)
    if annotations:
        raise ValueError(
            f"{json_file}: {sum(map(len, annotations.values()))} annotations name images that it "
            f"does not list, the first of them image {next(iter(annotations))}"
        )
    logger.info("Loaded %d images from %s", len(records), json_file)
    return records


def relative_path(image: Mapping[str, Any], where: str) -> str:
    """Path of a picture below its folder: its ``file_name``, or as in LVIS off its ``coco_url``.

    Raises:
        ValueError: it has neither.
    """
    if image.get("file_name"):
        return str(image["file_name"])
    if image.get("coco_url"):
        return "/".join(str(image["coco_url"]).split("/")[-2:])
    raise ValueError(f"{where}: image {image['id']} has neither 'file_name' nor 'coco_url'")


def _instance(item: Mapping[str, Any], row: int, image: Mapping[str, Any]) -> dict[str, Any] | None:
    """An annotation in Detectron2's form; None, as there, if none of its polygons is one."""
    if len(item["bbox"]) != 4:
        raise ValueError(
            f"annotation {item['id']}: expected a box of 4 numbers (x, y, width, height), got "
            f"{item['bbox']}"
        )
    instance: dict[str, Any] = {
        "bbox": item["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": row,
        "iscrowd": int(item.get("iscrowd", 0)),
    }
    if "area" in item:  # the file's own; average recall by size goes by it
        instance["area"] = item["area"]
    segmentation = item.get("segmentation")
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):  # uncompressed, as COCO's crowds are
            segmentation = mask_util.frPyObjects(segmentation, image["height"], image["width"])
        instance["segmentation"] = segmentation
    elif segmentation:
        polygons = [points for points in segmentation if len(points) >= 6 and len(points) % 2 == 0]
        if not polygons:
            return None
        instance["segmentation"] = polygons
    return instance
