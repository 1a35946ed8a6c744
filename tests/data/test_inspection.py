"""What the check of data sets on disk finds, on small data made here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from vild.data import inspection
from vild.data.inspection import (
    EXPECTED,
    DatasetReport,
    evenly_spaced,
    inspect_custom,
    inspect_dataset,
    layout_in_use,
)

from ..malformed import PICTURES

WIDTH, HEIGHT = 40, 30
Contents = dict[str, Any]


def write_image(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def contents(names: list[str], *, coco_url: bool = False, categories: int = 3) -> Contents:
    """Annotations of one object of every class per image: id 102 is that of class 2 in image 1.

    LVIS names images by address, COCO by file name.
    """
    images: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        where = {"coco_url": f"http://images.example/{name}"} if coco_url else {"file_name": name}
        images.append({"id": index + 1, "width": WIDTH, "height": HEIGHT, **where})
    return {
        "images": images,
        "annotations": [
            {
                "id": 100 * image["id"] + category,
                "image_id": image["id"],
                "category_id": category,
                "bbox": [1, 2, 10, 10],
                "area": 100,
                "segmentation": [[1, 2, 11, 2, 11, 12, 1, 12]],
            }
            for image in images
            for category in range(1, categories + 1)
        ],
        "categories": [
            {"id": i + 1, "name": f"class {i + 1}", "frequency": "rcf"[i % 3]}
            for i in range(categories)
        ],
    }


def write_json(path: Path, data: Contents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def make_lvis(root: Path, flat: bool = False) -> tuple[Path, Path]:
    """A small LVIS; returns the folders of its json files and of its images."""
    annotations = root / ("annotations" if flat else "lvis")
    images = root if flat else root / "coco"
    names = {
        "train": ["train2017/1.jpg", "train2017/2.jpg", "train2017/3.jpg"],
        "val": ["val2017/4.jpg", "train2017/5.jpg"],
    }
    for split, paths in names.items():
        write_json(annotations / f"lvis_v1_{split}.json", contents(paths, coco_url=True))
        for path in paths:
            write_image(images / path)
    return annotations, images


def make_coco(root: Path, flat: bool = False) -> Path:
    """A small COCO; returns the folder that all of it lies in."""
    folder = root if flat else root / "coco"
    for split, names in (("train", ["1.jpg", "2.jpg", "3.jpg"]), ("val", ["4.jpg", "5.jpg"])):
        data = contents(names)
        for category in data["categories"]:
            del category["frequency"]
        write_json(folder / "annotations" / f"instances_{split}2017.json", data)
        for name in names:
            write_image(folder / f"{split}2017" / name)
    return folder


def expect_small(monkeypatch: pytest.MonkeyPatch) -> None:  # else they are not the official ones
    groups = {"classes": 3, "frequent classes": 1, "common classes": 1, "rare classes": 1}
    monkeypatch.setitem(EXPECTED, ("lvis", "train"), {"images": 3, **groups})
    monkeypatch.setitem(EXPECTED, ("lvis", "val"), {"images": 2, **groups})
    monkeypatch.setitem(EXPECTED, ("coco", "train"), {"images": 3, "classes": 3})
    monkeypatch.setitem(EXPECTED, ("coco", "val"), {"images": 2, "classes": 3})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_small(monkeypatch)


def write_custom(
    folder: Path, data: Contents | None = None, split: str = "val", more: str = ""
) -> Path:
    """A custom data set with one split; its images are written, ``data`` is as given.

    Args:
        more: lines to add to the yaml.
    """
    data = contents(["a.png", "b.png"]) if data is None else data
    write_json(folder / f"{split}.json", data)
    (folder / "images").mkdir(exist_ok=True)
    for image in data["images"]:
        if "file_name" in image:
            write_image(folder / "images" / image["file_name"])
    yaml_file = folder / "small.yaml"
    yaml_file.write_text(
        f"name: small\n{split}: {{json: {split}.json, images: images}}\nnovel: [class 2]\n{more}",
        encoding="utf-8",
    )
    return yaml_file


def texts(report: DatasetReport, severity: str = "error") -> list[str]:
    return [problem.text for problem in report.problems if problem.severity == severity]


def only_text(report: DatasetReport, severity: str = "error") -> str:
    """The text of the only problem there is, which has to be of that severity."""
    assert [problem.severity for problem in report.problems] == [severity], report.problems
    return report.problems[0].text


def problems_of(report: DatasetReport) -> list[tuple[str, str]]:
    """Severity and text of all problems, the texts after ``<json>: expected ``."""
    (split,) = report.splits
    start = f"{split.json_file}: expected "
    assert all(problem.text.startswith(start) for problem in report.problems), report.problems
    return [(problem.severity, problem.text.removeprefix(start)) for problem in report.problems]


def problems_of_split(report: DatasetReport, index: int) -> list[str]:
    """Texts of the errors of a split after ``<json>: expected ``; it has no other problems."""
    split = report.splits[index]
    assert {problem.severity for problem in split.problems} == {"error"}
    return [p.text.removeprefix(f"{split.json_file}: expected ") for p in split.problems]


def objects_of(report: DatasetReport) -> dict[str, int]:
    (split,) = report.splits
    assert split.counts is not None
    return dict(split.counts.objects)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["lvis", "coco"])
def test_a_sound_data_set_has_no_problem_in_either_layout(
    tmp_path: Path, name: str, flat: bool
) -> None:
    {"lvis": make_lvis, "coco": make_coco}[name](tmp_path, flat)
    report = inspect_dataset(name, tmp_path)
    assert report.problems == ()
    assert report.layout == ("flat" if flat else "Detectron2's")
    assert len(report.entries) == 4
    assert all(entry.there for entry in report.entries)
    train, val = report.splits
    assert train.counts is not None
    assert (train.name, train.counts.images, train.counts.annotations) == ("train", 3, 9)
    assert train.counts.categories == 3
    assert train.counts.objects == {}  # its novel classes are not those of this small one
    assert train.counts.frequencies == (
        {"r": 1, "c": 1, "f": 1} if name == "lvis" else {"r": 3}  # counted: 3 images each
    )
    assert (train.images_opened, val.images_opened) == (3, 2)


def test_an_empty_root_is_reported_entry_by_entry(tmp_path: Path) -> None:
    report = inspect_dataset("lvis", tmp_path)
    expected = [
        "coco/train2017",
        "coco/val2017",
        "lvis/lvis_v1_train.json",
        "lvis/lvis_v1_val.json",
    ]
    assert sorted(str(entry.path.relative_to(tmp_path)) for entry in report.entries) == expected
    assert not any(entry.there for entry in report.entries)
    assert report.errors == 4
    for path in expected:
        assert any(f"{path}, found none. Run `python" in text for text in texts(report))
    assert [split.counts for split in report.splits] == [None, None]


@pytest.mark.usefixtures("small")
def test_each_json_is_looked_for_in_both_layouts_as_the_registry_does(tmp_path: Path) -> None:
    make_lvis(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "lvis" / "lvis_v1_val.json").rename(tmp_path / "annotations" / "lvis_v1_val.json")
    report = inspect_dataset("lvis", tmp_path)
    assert [split.json_file.parent.name for split in report.splits] == ["lvis", "annotations"]
    # the flat json's images are looked for in the flat folders, which are not there
    assert problems_of_split(report, 1) == [
        f"2 images in {tmp_path}, got 2 names without a file: val2017/4.jpg, train2017/5.jpg. "
        "Correct the folder or the names, or get the images. The folder has annotations, coco, "
        "lvis."
    ]


def test_the_layout_in_use(tmp_path: Path) -> None:
    assert layout_in_use("lvis", tmp_path) == 0
    (tmp_path / "train2017").mkdir()
    assert layout_in_use("lvis", tmp_path) == 1
    assert layout_in_use("coco", tmp_path) == 1
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "lvis_v1_val.json").touch()
    assert layout_in_use("lvis", tmp_path) == 0
    assert layout_in_use("coco", tmp_path) == 1


def test_the_official_counts_are_expected(tmp_path: Path) -> None:
    make_lvis(tmp_path)
    make_coco(tmp_path)
    lvis, coco = (inspect_dataset(name, tmp_path, "none") for name in ("lvis", "coco"))
    for report, wrong in (
        (lvis.splits[0], ["100,170 images, got 3", "1,203 classes, got 3"]),
        (lvis.splits[1], ["19,809 images, got 2", "1,203 classes, got 3"]),
        (coco.splits[0], ["118,287 images, got 3", "80 classes, got 3"]),
        (coco.splits[1], ["5,000 images, got 2", "80 classes, got 3"]),
    ):
        found = [problem.text.partition("expected ")[2] for problem in report.problems]
        if report.json_file.name.startswith("lvis"):
            wrong += ["405 frequent classes, got 1", "461 common classes, got 1"]
            wrong += ["337 rare classes, got 1"]
        assert [text.partition(". ")[0] for text in found] == wrong
        assert {problem.severity for problem in report.problems} == {"error"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("flat", [False, True])
def test_missing_and_truncated_images_are_named(tmp_path: Path, flat: bool) -> None:
    _, images = make_lvis(tmp_path, flat)
    (images / "train2017" / "5.jpg").unlink()
    truncated = images / "train2017" / "2.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    report = inspect_dataset("lvis", tmp_path)
    broken, missing = texts(report)
    assert len(report.problems) == 2
    json_file = report.splits[0].json_file
    want = f"{json_file}: expected images that open and have the size in the json, got 1 others: "
    assert broken.startswith(want)
    assert f" {truncated}: its data are cut short or damaged (OSError: " in broken
    assert broken.endswith("Download or copy it again. Replace or correct them.")
    assert (
        f"expected 2 images in {images}, got 1 names without a file: train2017/5.jpg. " in missing
    )
    assert [split.images_opened for split in report.splits] == [3, 1]


@pytest.mark.parametrize(("images", "opened"), [("none", 0), ("sample", 2), ("all", 5)])
def test_how_many_images_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str, opened: int
) -> None:
    monkeypatch.setattr(inspection, "SAMPLE_SIZE", 2)
    yaml_file = write_custom(tmp_path, contents([f"{i}.png" for i in range(5)]))
    for i in range(5):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no image")
    report = inspect_custom(yaml_file, images)
    assert report.splits[0].images_opened == opened
    if opened:
        assert f"got {opened} others" in only_text(report)
        shown = [name for name in range(5) if f"{name}.png" in only_text(report)]
        assert shown == ([0, 4] if images == "sample" else [0, 1, 2, 3, 4])
    else:
        assert report.problems == ()


def _with_zeroed_end() -> bytes:
    """A JPEG of full length whose download stopped."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:-300] + bytes(300)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_with_zeroed_end, "its data are cut short or damaged (OSError: "),
        (PICTURES["floats.tiff"][0], "its values are floats of an unknown range. Convert it to 8"),
        (PICTURES["no_end.jpg"][0], "its data are cut short or damaged (OSError: "),
        (PICTURES["script.eps"][0], "it is PostScript, a program. Convert it to PNG or JPEG"),
    ],
)
def test_images_that_training_refuses_are_errors(
    tmp_path: Path, make: Callable[[], bytes], complaint: str
) -> None:
    yaml_file = write_custom(tmp_path)
    image = tmp_path / "images" / "b.png"
    image.write_bytes(make())
    text = only_text(inspect_custom(yaml_file))
    assert "expected images that open and have the size in the json, got 1 others: " in text
    assert f" {image}: {complaint}" in text
    assert text.endswith(". Replace or correct them.")


NAMES_ON_DISK = [  # as listed, as stored
    ("sub\\a.png", "sub/a.png"),
    ("my%20image.png", "my image.png"),
    ("100%.png", "100%.png"),
    ("A.PNG", "a.png"),
    ("a.JPG", "A.jpg"),
    ("sub/A.png", "sub/a.png"),
    ("cafe\u0301.png", "caf\u00e9.png"),
    ("caf\u00e9.png", "cafe\u0301.png"),
    ("images/a.png", "a.png"),
    ("data/images/a.png", "a.png"),
    ("images\\a.png", "a.png"),
]


@pytest.mark.parametrize(("listed", "stored"), NAMES_ON_DISK)
def test_images_are_found_by_the_names_that_tools_write(
    tmp_path: Path, listed: str, stored: str
) -> None:
    yaml_file = write_custom(tmp_path, contents([stored]))
    write_json(tmp_path / "val.json", contents([listed]))
    report = inspect_custom(yaml_file)
    assert report.problems == ()
    assert report.splits[0].images_opened == 1
    # training opens the same file
    (record,) = DatasetCatalog.get("small_val")
    assert record["file_name"] == str(tmp_path / "images" / stored)


@pytest.mark.parametrize("listed", ["A.png", "b.png", "sub/A.png", "../a.png", "a\0.png"])
def test_names_without_a_file_or_with_two_are_errors(tmp_path: Path, listed: str) -> None:
    yaml_file = write_custom(tmp_path, contents(["a.png", "a.PNG"]))
    write_json(tmp_path / "val.json", contents([listed]))
    assert problems_of(inspect_custom(yaml_file)) == [
        (
            "error",
            f"1 images in {tmp_path}/images, got 1 names without a file: {listed}. Correct the "
            "folder or the names, or get the images. The folder has a.PNG, a.png.",
        )
    ]


@pytest.mark.parametrize(
    ("count", "number", "wanted"),
    [(0, 3, []), (3, 3, [0, 1, 2]), (4, 3, [0, 2, 3]), (1000, 4, [0, 333, 666, 999])],
)
def test_the_sample_is_evenly_spaced(count: int, number: int, wanted: list[int]) -> None:
    assert evenly_spaced(range(count), number) == wanted


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    yaml_file = write_custom(tmp_path)
    write_image(tmp_path / "images" / "b.png", HEIGHT, WIDTH)
    assert "b.png (30 x 40 instead of 40 x 30)" in only_text(inspect_custom(yaml_file))


def test_a_turned_photograph_has_the_size_that_training_sees(tmp_path: Path) -> None:
    yaml_file = write_custom(tmp_path, contents(["a.jpg"]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert inspect_custom(yaml_file).problems == ()


def _set_box(box: list[Any]) -> Callable[[Contents], None]:
    def change(data: Contents) -> None:
        data["annotations"][1]["bbox"] = box

    return change


OUTSIDE = (
    "boxes inside their image, to 1 pixel, got {} that stick out: {}. Training clips them. If "
    "there are many: are they x, y, width, height in pixels?"
)


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ([-1, -1, 42, 32], False),  # to a pixel on every side
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
        ([1, 1, 0, 5], "got 1 empty ones: annotations[1] (id 102). Training leaves them out."),
        ([1, 1, 5, 0], "got 1 empty ones: annotations[1] (id 102). Training leaves them out."),
        ([5, 5, -2, 5], "got 1 negative ones: annotations[1] (id 102). They are left out."),
        ([5, 5, 0, -2], "got 1 negative ones: annotations[1] (id 102). They are left out."),
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


def _without(section: str, index: int, *keys: str) -> Callable[[Contents], None]:
    def change(data: Contents) -> None:
        for key in keys:
            del data[section][index][key]

    return change


BOXES = "boxes as 4 finite numbers (x, y, width, height), or masks to take them from, got 1 others"
BY_NAMES = "Mend the json: the classifier distinguishes classes by their names."


@pytest.mark.parametrize(
    ("change", "severity", "message"),
    [
        (
            _set_box([1, 2, 3]),
            "error",
            f"{BOXES}: annotations[1] (id 102): bbox [1.0, 2.0, 3.0]. Mend the json.",
        ),
        (
            _set_box([1, 2, 3, float("nan")]),
            "error",
            f"{BOXES}: annotations[1] (id 102): bbox [1.0, 2.0, 3.0, nan]. Mend the json.",
        ),
        (
            _set_box([1, 2, 3, "wide"]),
            "error",
            "entries of COCO's format, got 1 others: annotations[1].bbox[3]: expected float, got "
            "str. Mend the json.",
        ),
        (
            _without("annotations", 1, "bbox", "segmentation"),
            "error",
            f"{BOXES}: annotations[1] (id 102): neither box nor mask. Mend the json.",
        ),
        (
            _change("categories", 0, name=" "),
            "error",
            f"a name for every class, got 1 without one, ids 1. {BY_NAMES}",
        ),
        (
            _change("categories", 0, name="Class_3"),
            "error",
            f"different class names, got 1 with equal prompts: 'Class_3' and 'class 3'. {BY_NAMES}",
        ),
        (
            _change("categories", 0, frequency="rare"),
            "error",
            "the frequency 'r', 'c' or 'f' of a class, got 1 others: 'class 1': 'rare'. Mend the "
            "json.",
        ),
        (
            _change("annotations", 0, image_id=9),
            "error",
            "annotations of images in the json, got 1 others: annotations[0] (id 101): image 9. "
            "Mend the json.",
        ),
        (
            _change("images", 0, file_name=""),
            "error",
            "'file_name' or 'coco_url', got 1 images with neither, ids 1. Mend the json.",
        ),
        (
            _change("annotations", 0, category_id=9),
            "warning",
            "annotations of classes in the json, got 1 others: annotations[0] (id 101): class 9. "
            "They are left out.",
        ),
        (
            _change("annotations", 0, segmentation=[[1, 1, 5, 5]]),
            "warning",
            "masks that can be drawn, got 1 others: annotations[0] (id 101): no polygon with 3 "
            "points and an area. Their boxes are used, without masks.",
        ),
        (
            _change("annotations", 0, id=102),
            "note",
            "different annotation ids, got 1 missing or repeated. They are not used: annotations "
            "are numbered by their order.",
        ),
        (
            _change("annotations", 0, area=None),
            "note",
            "areas, got 1 annotations without. Those of the boxes are used.",
        ),
        (
            _without("annotations", 0, "bbox"),
            "note",
            "boxes, got 1 annotations without. Boxes around their masks are used.",
        ),
        (
            _without("annotations", 0, "segmentation"),
            "note",
            "masks, got 1 objects without. They count for boxes alone.",
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
    # a mask that cannot be drawn leaves an object without one
    also = [m for m in problems_of(report) if m[1].startswith("masks, got 1 objects without")]
    expected = [(severity, message)]
    assert problems_of(report) == (expected + also if "drawn" in message else expected)
    assert report.errors == (severity == "error")
    assert ("small_val" in DatasetCatalog) == (severity != "error")


def test_numbers_may_be_text(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    _set_box([1, "2", "3.5", 4])(data)
    data["annotations"][1]["category_id"] = "2"
    report = inspect_custom(write_custom(tmp_path, data))
    assert report.problems == ()
    (record, _) = DatasetCatalog.get("small_val")
    assert record["annotations"][1]["bbox"] == [1, 2, 3.5, 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            _change("categories", 0, name=None),
            {
                "error": "got 1 others: categories[0]: object missing required field name. Mend",
                "warning": "of classes in the json, got 2 others: annotations[0] (id 101): class 1",
            },
        ),
        (
            _change("categories", 2, id=2),
            {
                "error": "expected different class ids, got 1 repeated ones: 2. Mend the json.",
                "warning": "of classes in the json, got 2 others: annotations[2] (id 103): class 3",
            },
        ),
        (
            _change("images", 0, width=0),
            {
                "error": "expected image sizes in pixels, got 1 images without, ids 1. Mend",
                "warning": "got 3 that stick out: annotations[0] (id 101), annotations[1]",
            },
        ),
    ],
)
def test_an_error_may_have_consequences(
    tmp_path: Path, change: Callable[[Contents], None], expected: dict[str, str]
) -> None:
    yaml_file = write_custom(tmp_path)
    data = contents(["a.png", "b.png"])
    change(data)
    write_json(tmp_path / "val.json", data)
    report = inspect_custom(yaml_file, "none")
    assert len(report.problems) == len(expected)
    for severity, message in expected.items():
        (text,) = texts(report, severity)
        assert message in text


def test_an_image_id_that_is_there_twice(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    data["images"][1]["id"] = 1
    for annotation in data["annotations"]:
        annotation["image_id"] = 1
    text = "different image ids, got 1 repeated ones: 1. Mend the json."
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
NOTHING = ("error", "objects of base classes, got none. Nothing is left to train on.")


@pytest.mark.parametrize(
    ("split", "change", "expected"),
    [
        ("train", _only_class_2, [NOTHING]),
        ("train", _base_are_crowds, [NOTHING]),
        ("train", _no_class_2, []),  # training has no novel objects anyway
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
    assert report.problems == ()  # class 3 takes no part


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_json_without_images_or_classes(tmp_path: Path, split: str) -> None:
    data = contents(["a.png"]) | {"images": [], "annotations": []}
    empty = "images, got 1 empty list. There is nothing to train on or evaluate."
    unused = UNUSED.format(3, "class 1, class 2, class 3")
    assert problems_of(inspect_custom(write_custom(tmp_path, data, split))) == [
        ("warning", empty),
        NOTHING if split == "train" else ("warning", unused),
    ]
    data = contents(["a.png"]) | {"annotations": [], "categories": []}
    assert problems_of(inspect_custom(write_custom(tmp_path, data, split))) == [
        ("error", "at least one class under 'categories', got 1 empty list. Mend the json.")
    ]


def test_crowds_that_may_be_single_objects(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [32, 10, 1158]}
    warning = (
        "objects, got {} crowd regions, more than half of all annotations. Neither training nor "
        "evaluation counts them. CVAT marks every mask so: if they are single objects, set "
        "`crowds_are_objects: true` in the yaml of the data set."
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
        annotation["iscrowd"] = 0  # half of them
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
        ([[0.2, 0.3, 0.9, 0.5], [0, 0, 1, 1.1]], None),  # right and bottom are more than a pixel
        ([[-0.2, 0.3, 0.4, 0.5], [1, 2, 0.4, 0.5]], None),
    ],
)
def test_boxes_that_may_be_fractions(
    tmp_path: Path, boxes: list[list[float]], expected: str | None
) -> None:
    data = contents(["a.png", "b.png"], categories=2)
    for annotation, box in zip(data["annotations"], boxes * 2, strict=True):
        annotation["bbox"] = box
    where = "of less than a pixel in the top left corner"
    texts = {
        "all_fractions": (
            "error",
            f"boxes in pixels, got 4 {where}, which is all of them. They look like fractions of "
            "the image, as YOLO writes them: multiply them by its size.",
        ),
        "fractions": (
            "warning",
            f"boxes in pixels, got 2 {where}. Are they fractions of the image, as YOLO writes "
            "them? Multiply them by its size.",
        ),
    }
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == ([texts[expected]] if expected else [])


@pytest.mark.parametrize("name", ["things", "class 1", "class 2"])
def test_the_class_that_groups_the_others_is_left_out(tmp_path: Path, name: str) -> None:
    data = contents(["a.png", "b.png"])
    for category in data["categories"]:
        category["supercategory"] = name
    root = {"id": 0, "name": name, "supercategory": "none"}
    data["categories"].insert(0, root)
    report = inspect_custom(write_custom(tmp_path, data))
    note = f"classes of objects, got 1 that only groups the others: {name}. It is left out: no"
    assert problems_of(report) == [("note", f"{note} annotation has it.")]
    assert objects_of(report) == {"base": 4, "novel": 2}
    metadata = MetadataCatalog.get("small_val")
    assert metadata.thing_classes == ["class 1", "class 2", "class 3"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}


def test_a_grouping_class_with_objects_is_a_class(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    for category in data["categories"]:
        category["supercategory"] = "things"
    data["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    data["annotations"][0]["category_id"] = 0
    assert inspect_custom(write_custom(tmp_path, data)).problems == ()
    assert MetadataCatalog.get("small_val").thing_classes[0] == "things"
    data["categories"][2]["supercategory"] = "others"  # and so it is if it groups only some
    data["annotations"][0]["category_id"] = 1
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [("warning", UNUSED.format(1, "things"))]


@pytest.mark.usefixtures("small")
def test_a_broken_json_is_an_error_and_the_other_split_is_still_looked_at(tmp_path: Path) -> None:
    annotations, _ = make_lvis(tmp_path)
    train = annotations / "lvis_v1_train.json"
    train.write_text(train.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    report = inspect_dataset("lvis", tmp_path)
    assert f"{train} is not a json file" in only_text(report)
    assert report.splits[0].counts is None
    assert report.splits[1].counts is not None


def test_a_sound_custom_data_set_has_no_problem(tmp_path: Path) -> None:
    report = inspect_custom(write_custom(tmp_path))
    assert report.problems == ()
    assert (report.name, report.layout, report.root) == ("small", "custom", tmp_path)
    assert [entry.path.name for entry in report.entries if entry.there] == ["val.json", "images"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: small\nval: {json: val.json, images: nowhere}\nnovel: r\n", "no folder"),
        ("name: small\nval: {json: gone.json, images: images}\nnovel: r\n", "Correct the path"),
        ("name: small\nval: {json: val.json, images: images}\nnovel: [class 9]\n", "'class 9'"),
        ("name: small\nnovel: r\n", "at least one of the keys 'train' and 'val'"),
    ],
)
def test_what_a_yaml_may_have_wrong(tmp_path: Path, text: str, message: str) -> None:
    yaml_file = write_custom(tmp_path)
    yaml_file.write_text(text, encoding="utf-8")
    assert message in only_text(inspect_custom(yaml_file))


def test_a_missing_yaml_is_reported(tmp_path: Path) -> None:
    assert "No such file" in only_text(inspect_custom(tmp_path / "gone.yaml"))


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a data set among lvis, coco, got 'voc'"):
        inspect_dataset("voc", tmp_path)
    with pytest.raises(ValueError, match="among none, sample, all, got 'some'"):
        inspect_dataset("lvis", tmp_path, "some")
