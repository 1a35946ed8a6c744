"""COCO and LVIS annotations give the same records as Detectron2's loaders."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_lvis_json
from detectron2.structures import BoxMode
from PIL import Image

from vild.data import load_records, read_annotations
from vild.data.dataset_mapper import ViLDDatasetMapper

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
TRIANGLE = [1, 1, 9, 1, 5, 8]
# 20 × 30 pixels in column-major order; columns three to five are the crowd
UNCOMPRESSED = {"size": [20, 30], "counts": [40, 60, 500]}

Contents = dict[str, Any]


def write(folder: Path, contents: object, name: str = "instances.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents), encoding="utf-8")
    return path


def annotation(id: int, image_id: int, category_id: int, **more: object) -> dict[str, Any]:
    """Return an annotation: a square in COCO's format, with ``more`` keys."""
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2.0, 2.0, 10.0, 10.0],
        "area": 100.0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        **more,
    }


def coco_contents() -> Contents:
    """Return three images and three classes, neither in the order of their ids."""
    compressed = mask_util.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    return {
        "images": [
            {"id": 9, "file_name": "nine.jpg", "height": 20, "width": 30},
            {"id": 4, "file_name": "sub/four.jpg", "height": 20, "width": 30},
            {"id": 7, "file_name": "seven.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            annotation(31, 9, 17),
            annotation(12, 4, 3, bbox=[1, 1, 8, 7], segmentation=[TRIANGLE, SQUARE]),
            annotation(13, 4, 90, iscrowd=1, segmentation=UNCOMPRESSED),
            annotation(11, 9, 3, iscrowd=1, segmentation=compressed),
            annotation(14, 4, 17, segmentation=[]),
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 17, "name": "cat"},
        ],
    }


COCO_ROWS = {3: 0, 17: 1, 90: 2}


def lvis_contents() -> Contents:
    images = [
        {
            "id": id,
            "height": 20,
            "width": 30,
            "coco_url": f"http://images.cocodataset.org/{path}",
            "neg_category_ids": [3, id],
            "not_exhaustive_category_ids": [id + 1],
        }
        for id, path in ((8, "val2017/000000000008.jpg"), (5, "train2017/000000000005.jpg"))
    ]
    plain = [annotation(1, 8, 2), annotation(2, 5, 1), annotation(3, 8, 3, segmentation=[TRIANGLE])]
    for item in plain:
        del item["iscrowd"]  # LVIS has no crowds
    categories = [
        {
            "id": id,
            "name": f"class_{id}",
            "synonyms": [f"class_{id}", "other"],
            "frequency": frequency,
            "image_count": 7 * id,
        }
        for id, frequency in ((3, "r"), (1, "f"), (2, "c"))
    ]
    return {"images": images, "annotations": plain, "categories": categories}


def test_coco_records_equal_detectron2s(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = write(tmp_path, coco_contents())
    name = "coco_of_a_test"
    request.addfinalizer(lambda: MetadataCatalog.remove(name))
    records = load_records(path, tmp_path / "images", COCO_ROWS)
    expected = load_coco_json(
        str(path), str(tmp_path / "images"), name, extra_annotation_keys=["area"]
    )
    for record in expected:
        for instance in record["annotations"]:
            mask = instance.get("segmentation")
            if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
                mask["counts"] = mask["counts"].decode()  # str, as in json
    assert records == expected
    assert [record["image_id"] for record in records] == [4, 7, 9]
    assert [len(record["annotations"]) for record in records] == [3, 0, 2]


def test_lvis_records_equal_detectron2s(tmp_path: Path) -> None:
    path = write(tmp_path, lvis_contents())
    records = load_records(path, tmp_path, {1: 0, 2: 1, 3: 2})
    for record in records:
        for instance in record["annotations"]:
            assert instance.pop("iscrowd") == 0  # a key of COCO; the loader adds none
    assert records == load_lvis_json(str(path), f"{tmp_path}/", extra_annotation_keys=["area"])
    assert [record["file_name"] for record in records] == [
        str(tmp_path / "train2017" / "000000000005.jpg"),
        str(tmp_path / "val2017" / "000000000008.jpg"),
    ]


def test_crowds_are_compressed_and_keep_their_pixels(tmp_path: Path) -> None:
    records = load_records(write(tmp_path, coco_contents()), tmp_path, COCO_ROWS)
    crowd = next(a for a in records[0]["annotations"] if a["iscrowd"])
    assert crowd["bbox_mode"] == BoxMode.XYWH_ABS
    assert isinstance(crowd["segmentation"]["counts"], str)
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 2:5] = 1
    np.testing.assert_array_equal(mask_util.decode(crowd["segmentation"]), expected)


def test_polygons_of_fewer_than_three_points_go(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["annotations"] = [
        annotation(1, 4, 3, segmentation=[[1, 1, 5, 5], TRIANGLE, [1, 1, 5, 5, 2, 2, 3]])
    ]
    records = load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)
    assert records[0]["annotations"][0]["segmentation"] == [TRIANGLE]


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["images"].append(contents["images"][0])
    with pytest.raises(ValueError, match=r"expected unique image ids, got 1 repeated ones: 9"):
        load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)


def test_an_object_without_valid_polygons_does_not_stop_the_mapper(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["images"] = [{"id": 4, "file_name": "four.png", "height": 20, "width": 30}]
    contents["annotations"] = [
        annotation(1, 4, 3),
        annotation(2, 4, 17, segmentation=[[1, 1, 5, 5]]),
    ]
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "four.png")
    (record,) = load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)
    mapper = ViLDDatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    found = mapper(record)["instances"]
    assert found.gt_classes.tolist() == [0, 1]
    assert found.gt_has_mask.tolist() == [True, False]


def test_dropped_rows_and_ids_leave_the_images(tmp_path: Path) -> None:
    path = write(tmp_path, coco_contents())
    everything = load_records(path, tmp_path, COCO_ROWS)
    base = load_records(path, tmp_path, COCO_ROWS, kept_rows=[0, 2])
    assert [r["file_name"] for r in base] == [r["file_name"] for r in everything]
    assert rows_of(everything) == [[0, 2, 1], [], [1, 0]]
    assert rows_of(base) == [[0, 2], [], [0]]
    assert rows_of(load_records(path, tmp_path, {17: 0})) == [[0], [], [0]]
    assert rows_of(load_records(path, tmp_path, COCO_ROWS, kept_rows=[])) == [[], [], []]


def rows_of(records: list[dict[str, Any]]) -> list[list[int]]:
    """Return the rows of the annotations, one list per image."""
    return [[a["category_id"] for a in record["annotations"]] for record in records]


def test_what_was_looked_for_in_a_image_is_carried(tmp_path: Path) -> None:
    records = load_records(write(tmp_path, lvis_contents()), tmp_path, {1: 0}, kept_rows=[])
    assert [record["neg_category_ids"] for record in records] == [[3, 5], [3, 8]]
    assert [record["not_exhaustive_category_ids"] for record in records] == [[6], [9]]
    coco = load_records(write(tmp_path, coco_contents()), tmp_path, COCO_ROWS)
    assert "neg_category_ids" not in coco[0]


def test_file_name_goes_before_coco_url(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/other.jpg"
    records = load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)
    assert records[-1]["file_name"] == str(tmp_path / "nine.jpg")


def test_a_missing_file_is_named_with_the_checker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json: No such file.*check_datasets"):
        read_annotations(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="Is a directory"):
        read_annotations(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{'images': []}", b"version https://git-lfs", b"\xff\xd8"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json is not a json file \("):
        read_annotations(path)


def test_a_results_file_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    with pytest.raises(ValueError, match=r"got a list\. Is it a results file"):
        read_annotations(path)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}])
def test_a_missing_section_is_named(tmp_path: Path, section: str, value: dict | None) -> None:
    contents = coco_contents() | {section: value}
    if value is None:
        del contents[section]
    with pytest.raises(ValueError, match=rf"expected a list under '{section}'.*got the keys \['"):
        read_annotations(write(tmp_path, contents))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("images", key) for key in ("id", "height", "width")),
        *(("annotations", key) for key in ("image_id", "category_id")),
        *(("categories", key) for key in ("id", "name")),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, section: str, key: str) -> None:
    contents = coco_contents()
    del contents[section][1][key]
    with pytest.raises(ValueError, match=rf"{section}\[1\]: object missing required field {key}"):
        read_annotations(write(tmp_path, contents))


def test_an_item_that_is_no_object_is_named(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["categories"].append("bare name")
    with pytest.raises(ValueError, match=r"categories\[3\]: expected an object, got 'bare name'"):
        read_annotations(write(tmp_path, contents))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.clear(), "expected at least one class under 'categories', got an empty list"),
        (lambda c: c[0].update(id=3), "expected unique class ids, got 1 repeated ones: 3"),
        (lambda c: c[0].update(id="3"), "expected unique class ids, got 1 repeated ones: 3"),
        (lambda c: c[0].update(name="Car"), "got 1 with equal prompts: 'car' and 'Car'"),
        (lambda c: c[0].update(name=""), "a name for every class, got 1 without one, ids 90"),
        (lambda c: c[0].update(name="  "), "a name for every class, got 1 without one, ids 90"),
        (lambda c: c[0].update(name=["a"]), "categories[0].name: expected str, got array"),
        (lambda c: c[0].update(synonyms="a"), "categories[0].synonyms: expected array"),
        (
            lambda c: c[0].update(image_count="x"),
            "categories[0].image_count: expected int",
        ),
        (
            lambda c: c[0].update(frequency="rare"),
            "'r', 'c' or 'f' as the frequency of a class, got 1",
        ),
    ],
)
def test_bad_categories_are_named(
    tmp_path: Path, edit: Callable[[list[dict[str, Any]]], None], message: str
) -> None:
    contents = coco_contents()
    edit(contents["categories"])
    with pytest.raises(ValueError, match=re.escape(message)):
        read_annotations(write(tmp_path, contents))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["annotations"][2].update(image_id=1000),
            r"annotations of images in the json, got 1 of other images: annotations\[2\]",
        ),
        (
            lambda c: c["images"][0].pop("file_name"),
            r"expected 'file_name' or 'coco_url' of every image, got 1 images with neither, ids 9",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotations\[0\] \(id 31\): bbox"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3, None]),
            r"annotations\[0\].bbox\[3\]",
        ),
        (lambda c: c["annotations"][4].update(bbox=[]), r"annotations\[4\] .*neither box nor mask"),
        (lambda c: c["annotations"][0].update(area="large"), r"annotations\[0\].area: expected fl"),
        (
            lambda c: c["annotations"][0].update(iscrowd=2),
            r"annotations\[0\].iscrowd: expected int <= 1",
        ),
        (lambda c: c["images"][0].update(width=0), r"images\[0\].width: expected int >= 1"),
    ],
)
def test_bad_records_are_named(
    tmp_path: Path, edit: Callable[[Contents], None], message: str
) -> None:
    contents = coco_contents()
    edit(contents)
    with pytest.raises(ValueError, match=message):
        load_records(write(tmp_path, contents), tmp_path, COCO_ROWS)


def test_frequencies_are_counted_in_images(tmp_path: Path) -> None:
    counts = {1: 0, 2: 10, 3: 11, 4: 100, 5: 101}
    pairs = [(category, image) for category, n in counts.items() for image in range(n)]
    pairs += [(2, 0)] * 50  # several instances in an image count as one image
    contents = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in range(101)],
        "annotations": [annotation(n, image, c) for n, (c, image) in enumerate(pairs)],
        "categories": [{"id": id, "name": f"class {id}"} for id in counts],
    }
    categories = read_annotations(write(tmp_path, contents)).categories
    assert [c.frequency for c in categories] == ["r", "r", "c", "c", "f"]
    assert [c.image_count for c in categories] == [0, 10, 11, 100, 101]


def test_frequencies_of_the_json_are_taken(tmp_path: Path) -> None:
    contents = lvis_contents()  # its counts would make every class rare
    categories = read_annotations(write(tmp_path, contents)).categories
    assert [(c.id, c.frequency, c.image_count) for c in categories] == [
        *((1, "f", 7), (2, "c", 14), (3, "r", 21))
    ]
    without_counts = copy.deepcopy(contents)
    for item in without_counts["categories"]:
        del item["image_count"]
    categories = read_annotations(write(tmp_path, without_counts)).categories
    assert [(c.frequency, c.image_count) for c in categories] == [("f", 1), ("c", 1), ("r", 1)]


def test_categories_are_ordered_by_id_and_synonyms_begin_with_the_name(tmp_path: Path) -> None:
    contents = coco_contents()
    contents["categories"][1]["synonyms"] = ["auto", "car", "auto"]
    categories = read_annotations(write(tmp_path, contents)).categories
    assert [(c.id, c.name) for c in categories] == [(3, "car"), (17, "cat"), (90, "toothbrush")]
    assert [c.synonyms for c in categories] == [("car", "auto"), ("cat",), ("toothbrush",)]
