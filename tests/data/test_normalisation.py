"""Annotation values that are normalised, dropped and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vild.data import load_records, read_annotations

from .test_annotations import COCO_ROWS, annotation, coco_contents, lvis_contents, write


@pytest.mark.parametrize("value", [None, float("nan"), -1, float("inf")])
def test_areas_that_are_missing_are_those_of_the_boxes(tmp_path: Path, value: Any) -> None:
    contents = coco_contents()
    for item in contents["annotations"]:
        item["area"] = value
    found = read_annotations(write(tmp_path, contents))
    assert [item.area for item in found.objects] == [100, 56, 100, 100, 100]
    assert "expected areas, got 5 annotations without" in found.findings.problems()[0].text


def test_boxes_are_taken_from_masks(tmp_path: Path) -> None:
    contents = coco_contents()
    for item, box in zip(
        contents["annotations"][:4], (None, [], "gone", float("nan")), strict=True
    ):
        item["bbox"] = box
        if box == "gone":
            del item["bbox"]
    boxes = [item.bbox for item in read_annotations(write(tmp_path, contents)).objects]
    assert boxes == [
        *([2, 2, 10, 10], [1, 1, 11, 11]),
        *([2, 0, 3, 20], [0, 0, 20, 20]),
        [2, 2, 10, 10],
    ]


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(None, 0), (0, 0), ("0", 0), (False, 0), (1, 1), ("1", 1), (True, 1), ("true", 1)],
)
def test_crowd_flags_of_any_kind(tmp_path: Path, value: Any, crowd: int) -> None:
    contents = coco_contents()
    contents["annotations"][0]["iscrowd"] = value
    assert read_annotations(write(tmp_path, contents)).objects[0].iscrowd == crowd
    assert read_annotations(write(tmp_path, contents), True).objects[0].iscrowd == 0


def test_ids_of_any_kind_are_matched(tmp_path: Path) -> None:
    contents = coco_contents()
    for item in contents["annotations"]:
        item["id"] = 0  # repeated, but unused
        item["image_id"], item["category_id"] = str(item["image_id"]), float(item["category_id"])
    contents["images"][1]["id"] = "4"
    found = read_annotations(write(tmp_path, contents))
    assert [(i.image_id, i.category_id) for i in found.objects] == [
        *((9, 17), ("4", 3), ("4", 90), (9, 3), ("4", 17))
    ]
    assert "annotation ids, got 4 missing or repeated" in found.findings.problems()[0].text
    records = load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)
    assert [record["image_id"] for record in records] == [7, 9, "4"]


def test_null_is_missing(tmp_path: Path) -> None:
    contents = lvis_contents()
    for item in contents["categories"]:
        item.update(image_count=None, frequency=None, synonyms=None)
    found = read_annotations(write(tmp_path, contents))
    assert [(c.frequency, c.image_count, c.synonyms) for c in found.categories] == [
        ("r", 1, (f"class_{n}",)) for n in (1, 2, 3)
    ]
    contents["images"][0]["neg_category_ids"] = None
    images = read_annotations(write(tmp_path, contents)).images
    assert [image.neg_category_ids for image in images].count(None) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_of_unicode(tmp_path: Path, encoding: str) -> None:
    contents = coco_contents()
    contents["categories"][0]["name"] = "brosse à dents"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(contents, ensure_ascii=False), encoding=encoding)
    assert read_annotations(path).categories[2].name == "brosse à dents"


def test_a_list_of_points_in_a_well_typed_file(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["annotations"] = [annotation(1, 4, 3, segmentation=[[2, 2], [12, 2], [12, 12]])]
    (found,) = read_annotations(write(tmp_path, contents)).objects
    assert found.segmentation == [[2, 2, 12, 2, 12, 12]]


@pytest.mark.parametrize("box", [[30, 2, 5, 5], [2, 20, 5, 5], [-5, 2, 5, 5], [500, 500, 20, 20]])
def test_objects_off_their_image_are_left_out(tmp_path: Path, box: list[int]) -> None:
    contents = coco_contents()
    contents["annotations"][0]["bbox"] = box
    found = read_annotations(write(tmp_path, contents))
    assert len(found.objects) == 4
    assert (
        "boxes that overlap their image, got 1 outside it: annotations[0]"
        in found.findings.problems()[0].text
    )
    assert found.findings.problems()[0].severity == "warning"


def test_repeated_objects_are_named(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["annotations"] *= 2
    found = read_annotations(write(tmp_path, contents))
    (text,) = (p.text for p in found.findings.problems() if p.severity == "warning")
    assert "got 5 that repeat another one's image, class and box: annotations[5] (id 31)" in text


def test_masks_that_do_not_fit_their_boxes(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["annotations"] = [
        annotation(n, 4, 3, bbox=[1, n, 10, 5], segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]])
        for n in range(12)
    ]
    found = read_annotations(write(tmp_path, contents))
    assert "masks that fill their boxes, got 12 that do not" in found.findings.problems()[0].text


def test_lists_of_unknown_classes_are_named(tmp_path: Path) -> None:
    contents = lvis_contents()
    contents["images"][0]["neg_category_ids"] = ["class_3"]
    contents["images"][1]["neg_category_ids"] = ["3"]
    for image in contents["images"]:
        image["not_exhaustive_category_ids"] = []
    (problem,) = read_annotations(write(tmp_path, contents)).findings.problems()
    assert problem.severity == "warning"
    assert "lists per image, got 1 unknown ones: image 8: neg_category_ids" in problem.text


@pytest.mark.parametrize("name", ["_", "x" * 201, "cat \ud83d", "a\nb"])
def test_names_that_no_vocabulary_takes(tmp_path: Path, name: str) -> None:
    contents = coco_contents()
    contents["categories"][0]["name"] = name
    with pytest.raises(ValueError, match="expected a name for every class"):
        read_annotations(write(tmp_path, contents))


def test_nan_is_missing_and_a_supercategory_may_be_anything(tmp_path: Path) -> None:
    contents = coco_contents()
    nan = float("nan")
    contents["annotations"][0].update(id=nan, iscrowd=nan, area=nan)
    contents["categories"][0].update(synonyms=nan, supercategory=0)
    found = read_annotations(write(tmp_path, contents))
    assert len(found.objects) == 5
    assert found.objects[0].iscrowd == 0


def test_run_lengths_of_a_huge_image(tmp_path: Path) -> None:
    side = 10**6
    mask = {"size": [side, side], "counts": [0, side * side]}
    contents = coco_contents()
    contents["images"][1].update(height=side, width=side)
    contents["annotations"] = [annotation(1, 4, 3, segmentation=mask)]
    (found,) = read_annotations(write(tmp_path, contents)).objects
    assert found.segmentation is None
