"""Findings about annotations in the dataset inspection: broken, implausible or normalised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from vild.data.inspection import inspect_custom

from .conftest import (
    HEIGHT,
    WIDTH,
    Contents,
    contents,
    objects_of,
    only_text,
    problems_of,
    write_custom,
    write_json,
)


def _set_box(box: list[Any]) -> Callable[[Contents], None]:
    def change(data: Contents) -> None:
        data["annotations"][1]["bbox"] = box

    return change


OUTSIDE = (
    "boxes inside their image, up to 1 pixel, got {} that extend beyond it: {}. Training "
    "clips them. If there are many: are they x, y, width, height in pixels?"
)


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ([-1, -1, 42, 32], False),  # a pixel on every side is tolerated
        ([-1.1, 0, 10, 10], True),
        ([0, -1.1, 10, 10], True),
        ([30, 0, 11.1, 10], True),
        ([0, 25, 10, 6.1], True),
        ([39, 29, 2, 2], False),
    ],
)
def test_boxes_may_stick_out_by_a_pixel(tmp_path: Path, box: list[float], outside: bool) -> None:
    data = contents(["a.png", "b.png"])
    _set_box(box)(data)
    expected = [("warning", OUTSIDE.format(1, "annotations[1] (id 102)"))] if outside else []
    assert problems_of(inspect_custom(write_custom(tmp_path, data))) == expected


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 1, 0, 5], "got 1 empty ones: annotations[1] (id 102). Training ignores them."),
        ([1, 1, 5, 0], "got 1 empty ones: annotations[1] (id 102). Training ignores them."),
        ([5, 5, -2, 5], "got 1 negative ones: annotations[1] (id 102). They are ignored."),
        ([5, 5, 0, -2], "got 1 negative ones: annotations[1] (id 102). They are ignored."),
    ],
)
def test_boxes_without_area_are_warnings(tmp_path: Path, box: list[float], message: str) -> None:
    data = contents(["a.png", "b.png"])
    _set_box(box)(data)
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [("warning", f"boxes of positive size, {message}")]
    assert objects_of(report) == {"base": 4, "novel": 1}


def _change(section: str, index: int, **values: Any) -> Callable[[Contents], None]:
    return lambda data: data[section][index].update(values)


CORRECT = "Correct the json."
BY_NAMES = f"{CORRECT[:-1]}: the classifier distinguishes classes by their names."
BOXES = (
    "boxes as 4 finite numbers (x, y, width, height), or masks to derive them from, got 1 "
    "annotations without"
)
FIRST, SECOND = "annotations[0] (id 101)", "annotations[1] (id 102)"


@pytest.mark.parametrize(
    ("change", "severity", "message"),
    [
        (_set_box([1, 2, 3]), "error", f"{BOXES}: {SECOND}: bbox [1.0, 2.0, 3.0]. {CORRECT}"),
        (
            _set_box([1, 2, 3, float("nan")]),
            "error",
            f"{BOXES}: {SECOND}: bbox [1.0, 2.0, 3.0, nan]. {CORRECT}",
        ),
        (
            _set_box([1, 2, 3, "wide"]),
            "error",
            "entries in COCO's format, got 1 invalid ones: annotations[1].bbox[3]: expected float, "
            f"got str. {CORRECT}",
        ),
        (
            _change("annotations", 1, bbox=None, segmentation=None),
            "error",
            f"{BOXES}: {SECOND}: neither box nor mask. {CORRECT}",
        ),
        (
            _change("categories", 0, name=" "),
            "error",
            f"a name for every class, got 1 without one, ids 1. {BY_NAMES}",
        ),
        (
            _change("categories", 0, name="Class_3"),
            "error",
            f"distinct class names, got 1 with equal prompts: 'Class_3' and 'class 3'. {BY_NAMES}",
        ),
        (
            _change("categories", 0, frequency="rare"),
            "error",
            f"'r', 'c' or 'f' as the frequency of a class, got 1 others: 'class 1': 'rare'. "
            f"{CORRECT}",
        ),
        (
            _change("annotations", 0, image_id=9),
            "error",
            f"annotations of images in the json, got 1 of other images: {FIRST}: image 9. "
            f"{CORRECT}",
        ),
        (
            _change("images", 0, file_name=""),
            "error",
            f"'file_name' or 'coco_url' of every image, got 1 images with neither, ids 1. "
            f"{CORRECT}",
        ),
        (
            _change("annotations", 0, category_id=9),
            "warning",
            f"annotations of classes in the json, got 1 of other classes: {FIRST}: class 9. They "
            "are ignored.",
        ),
        (
            _change("annotations", 0, id=102),
            "note",
            "unique annotation ids, got 1 missing or repeated. They are not used: annotations "
            "are numbered in order.",
        ),
        (
            _change("annotations", 0, area=None),
            "note",
            "areas, got 1 annotations without. The areas of their boxes are used.",
        ),
        (
            _change("annotations", 0, bbox=None),
            "note",
            "boxes, got 1 annotations without. The boxes around their masks are used.",
        ),
        (
            _change("annotations", 0, segmentation=None),
            "note",
            "masks, got 1 objects without. They are used for boxes only.",
        ),
    ],
)
def test_what_a_json_may_have_wrong(
    tmp_path: Path, change: Callable[[Contents], None], severity: str, message: str
) -> None:
    yaml_file = write_custom(tmp_path)
    data = contents(["a.png", "b.png"])
    change(data)
    write_json(tmp_path / "val.json", data)
    report = inspect_custom(yaml_file, "none")
    assert problems_of(report) == [(severity, message)]
    assert report.errors == (severity == "error")
    assert ("small_val" in DatasetCatalog) == (severity != "error")


def _no_sizes(data: Contents) -> None:
    for image in data["images"]:
        image["width"] = 0


def _lists_of_a_nameless_class(data: Contents) -> None:
    data["images"][0]["neg_category_ids"] = [1]
    del data["categories"][0]["name"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            _change("categories", 0, name=None),
            "ones: categories[0]: object missing required field name. Correct",
        ),
        (
            _lists_of_a_nameless_class,
            "ones: categories[0]: object missing required field name. Correct",
        ),
        (_change("categories", 2, id=2), "unique class ids, got 1 repeated ones: 2. Correct"),
        (
            _change("images", 0, width=0),
            "got 1 invalid ones: images[0].width: expected int >= 1. Correct",
        ),
        (_no_sizes, "got 2 invalid ones: images[0].width: expected int >= 1, images[1].width"),
        (_change("images", 0, id=None), "images[0]: object missing required field id. Correct"),
        (lambda d: d.update(images=["a"]), "images[0]: expected an object, got 'a'. Correct"),
        (
            lambda d: d.update(categories=["a"]),
            "categories[0]: expected an object, got 'a'. Correct",
        ),
    ],
)
def test_consequences_are_not_named(
    tmp_path: Path, change: Callable[[Contents], None], cause: str
) -> None:
    yaml_file = write_custom(tmp_path)
    data = contents(["a.png", "b.png"])
    change(data)
    write_json(tmp_path / "val.json", data)
    ((severity, text),) = problems_of(inspect_custom(yaml_file, "none"))
    assert severity == "error"
    assert cause in text


def test_masks_that_are_left_out_are_missing(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    data["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]
    (warning, note) = problems_of(inspect_custom(write_custom(tmp_path, data)))
    assert f"got 1 invalid ones: {FIRST}: no polygon" in warning[1]
    assert note == ("note", "masks, got 1 objects without. They are used for boxes only.")


def test_numbers_may_be_text(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    _set_box([1, "2", "3.5", 4])(data)
    data["annotations"][1]["category_id"] = "2"
    report = inspect_custom(write_custom(tmp_path, data))
    assert report.problems == ()
    (record, _) = DatasetCatalog.get("small_val")
    assert record["annotations"][1]["bbox"] == [1, 2, 3.5, 4]


def test_an_image_id_that_is_there_twice(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    data["images"][1]["id"] = 1
    for annotation in data["annotations"]:
        annotation["image_id"] = 1
    text = "unique image ids, got 1 repeated ones: 1. Correct the json."
    assert ("error", text) in problems_of(inspect_custom(write_custom(tmp_path, data)))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png", "c.png"])
    for annotation in data["annotations"]:
        annotation["bbox"] = [0, 0, 99, 9]
    shown = (
        "annotations[0] (id 101), annotations[1] (id 102), annotations[2] (id 103), "
        "annotations[3] (id 201), annotations[4] (id 202), ..."
    )
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [("warning", OUTSIDE.format(9, shown))]
    (tmp_path / "images" / "a.png").unlink()
    write_json(tmp_path / "val.json", contents([f"{i}.png" for i in range(6)]))
    text = only_text(inspect_custom(tmp_path / "small.yaml"))
    assert "got 6 names without a file: 0.png, 1.png, 2.png, 3.png, 4.png, .... Correct" in text


def test_objects_of_base_and_novel_classes_are_counted(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    assert objects_of(inspect_custom(write_custom(tmp_path, data))) == {"base": 4, "novel": 2}
    data["annotations"][0]["iscrowd"] = 1  # of class 1
    data["annotations"][2]["category_id"] = 9
    data["annotations"][4]["bbox"] = [1, 2, 0, 5]  # of class 2
    assert objects_of(inspect_custom(write_custom(tmp_path, data))) == {"base": 2, "novel": 1}
    data = contents(["a.png", "b.png"])
    report = inspect_custom(write_custom(tmp_path, data, more="base: [class 3]\n"))
    assert objects_of(report) == {"base": 2, "novel": 2}


def _only_class_2(data: Contents) -> None:
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 2]


def _no_class_2(data: Contents) -> None:
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 2]


def _base_are_crowds(data: Contents) -> None:
    for annotation in data["annotations"]:
        annotation["iscrowd"] = int(annotation["category_id"] == 1)
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 3]


UNUSED = "objects of every class, got {} classes without any: {}."
NOTHING = ("error", "objects of base classes, got none. There is nothing to train on.")


@pytest.mark.parametrize(
    ("split", "change", "expected"),
    [
        ("train", _only_class_2, [NOTHING]),
        ("train", _base_are_crowds, [NOTHING]),
        ("train", _no_class_2, []),  # training does not use novel objects
        ("val", _only_class_2, [("warning", UNUSED.format(2, "class 1, class 3"))]),
        ("val", _base_are_crowds, [("warning", UNUSED.format(2, "class 1, class 3"))]),
        ("val", _no_class_2, [("warning", UNUSED.format(1, "class 2"))]),
    ],
)
def test_classes_without_objects(
    tmp_path: Path,
    split: str,
    change: Callable[[Contents], None],
    expected: list[tuple[str, str]],
) -> None:
    data = contents(["a.png", "b.png"])
    change(data)
    report = inspect_custom(write_custom(tmp_path, data, split))
    assert problems_of(report) == expected
    assert report.errors == (expected == [NOTHING])


def test_a_base_class_without_objects_is_a_warning_in_train(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 3]
    report = inspect_custom(write_custom(tmp_path, data, "train"))
    assert problems_of(report) == [("warning", UNUSED.format(1, "class 3"))]
    report = inspect_custom(write_custom(tmp_path, data, "train", "base: [class 1]\n"))
    assert report.problems == ()  # class 3 is not used


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_json_without_images_or_classes(tmp_path: Path, split: str) -> None:
    data = contents(["a.png"]) | {"images": [], "annotations": []}
    empty = "images, got none. There is nothing to train on or evaluate."
    assert problems_of(inspect_custom(write_custom(tmp_path, data, split))) == [("error", empty)]
    data = contents(["a.png"]) | {"annotations": [], "categories": []}
    assert problems_of(inspect_custom(write_custom(tmp_path, data, split))) == [
        ("error", "at least one class under 'categories', got an empty list. Correct the json.")
    ]


def test_crowds_that_may_be_single_objects(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [32, 10, 1158]}
    warning = (
        "single objects, got {} crowd regions, more than half of all annotations. Neither training "
        "nor evaluation counts them. CVAT marks every mask as a crowd: if they are single objects, "
        "set `crowds_are_objects: true` in the yaml of the dataset."
    )
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [
        ("warning", warning.format(6)),
        ("warning", UNUSED.format(3, "class 1, class 2, class 3")),
    ]
    assert objects_of(report) == {"base": 0, "novel": 0}

    report = inspect_custom(write_custom(tmp_path, data, more="crowds_are_objects: true\n"))
    assert report.problems == ()
    assert objects_of(report) == {"base": 4, "novel": 2}
    records = DatasetCatalog.get("small_val")
    assert [a["iscrowd"] for record in records for a in record["annotations"]] == [0] * 6

    for annotation in data["annotations"][:3]:
        annotation["iscrowd"] = 0  # half of the annotations remain crowds
    assert inspect_custom(write_custom(tmp_path, data)).problems == ()
    data["annotations"][0]["iscrowd"] = 1
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [
        ("warning", warning.format(4)),
        ("warning", UNUSED.format(1, "class 1")),
    ]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[0.2, 0.3, 0.4, 0.5], [0, 0, 1, 1]], "all_fractions"),
        ([[0.2, 0.3, 0.4, 0.5], [1, 2, 3, 4]], "fractions"),
        ([[0.2, 0.3, 0.9, 0.5], [0, 0, 1, 1.1]], None),  # right and bottom are beyond one pixel
        ([[-0.2, 0.3, 0.4, 0.5], [1, 2, 0.4, 0.5]], None),
    ],
)
def test_boxes_that_may_be_fractions(
    tmp_path: Path, boxes: list[list[float]], expected: str | None
) -> None:
    data = contents(["a.png", "b.png"], categories=2)
    for annotation, box in zip(data["annotations"], boxes * 2, strict=True):
        annotation["bbox"] = box
    texts = {
        "all_fractions": (
            "error",
            "boxes in pixels, but all 4 lie within the top-left pixel. They look like fractions of "
            "the image, as in YOLO's format: multiply them by the image size.",
        ),
        "fractions": (
            "warning",
            "boxes in pixels, got 2 within the top-left pixel. Are they fractions of the image, as "
            "in YOLO's format? Multiply them by the image size.",
        ),
    }
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == ([texts[expected]] if expected else [])


def _nested(depth: int) -> list[Any]:
    return [_nested(depth - 1)] if depth else []


ODD = (
    *(float("nan"), float("inf"), -float("inf"), 1e300, -1e300, True, False, 2**70, -(2**70)),
    *(10**400, -5, "x" * 5000, "a\nb", _nested(20), _nested(300), [1e308] * 4, [2**70] * 6),
)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_any_value_is_accepted_or_named_in_one_line(tmp_path: Path, section: str) -> None:
    sound = contents(["a.png", "b.png"])
    yaml_file = write_custom(tmp_path, sound)
    for key in sound[section][0]:
        for value in ODD:
            data = contents(["a.png", "b.png"])
            data[section][0][key] = value
            write_json(tmp_path / "val.json", data)
            for problem in inspect_custom(yaml_file, "none").problems:
                assert len(problem.text.splitlines()) == 1, (key, value)
                assert len(problem.text) < 1000, (key, value)


@pytest.mark.parametrize("side", ["width", "height"])
def test_impossible_image_sizes_are_errors(tmp_path: Path, side: str) -> None:
    yaml_file = write_custom(tmp_path)
    for value in (0, -5, 2**31, 2**70, 10**400):
        data = contents(["a.png", "b.png"])
        data["images"][0][side] = value
        write_json(tmp_path / "val.json", data)
        assert f"images[0].{side}: expected int" in only_text(inspect_custom(yaml_file, "none"))
