"""What the check of data sets on disk finds, on small data made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

WIDTH, HEIGHT = 40, 30
Contents = dict[str, Any]


def write_picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def contents(names: list[str], *, coco_url: bool = False, categories: int = 3) -> Contents:
    """Annotations of one box per picture; LVIS names pictures by address, COCO by file name."""
    images: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        where = {"coco_url": f"http://images.example/{name}"} if coco_url else {"file_name": name}
        images.append({"id": index + 1, "width": WIDTH, "height": HEIGHT, **where})
    return {
        "images": images,
        "annotations": [
            {"id": 100 + i["id"], "image_id": i["id"], "category_id": 1, "bbox": [1, 2, 10, 10]}
            for i in images
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
    """A small LVIS; returns the folders of its json files and of its pictures."""
    annotations = root / ("annotations" if flat else "lvis")
    pictures = root if flat else root / "coco"
    names = {
        "train": ["train2017/1.jpg", "train2017/2.jpg", "train2017/3.jpg"],
        "val": ["val2017/4.jpg", "train2017/5.jpg"],
    }
    for split, paths in names.items():
        write_json(annotations / f"lvis_v1_{split}.json", contents(paths, coco_url=True))
        for path in paths:
            write_picture(pictures / path)
    return annotations, pictures


def make_coco(root: Path, flat: bool = False) -> Path:
    """A small COCO; returns the folder that all of it lies in."""
    folder = root if flat else root / "coco"
    for split, names in (("train", ["1.jpg", "2.jpg", "3.jpg"]), ("val", ["4.jpg", "5.jpg"])):
        data = contents(names)
        for category in data["categories"]:
            del category["frequency"]
        write_json(folder / "annotations" / f"instances_{split}2017.json", data)
        for name in names:
            write_picture(folder / f"{split}2017" / name)
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


def write_custom(folder: Path, data: Contents | None = None) -> Path:
    """A custom data set with one split; its pictures are written, ``data`` is as given."""
    data = contents(["a.png", "b.png"]) if data is None else data
    write_json(folder / "val.json", data)
    (folder / "pictures").mkdir(exist_ok=True)
    for image in data["images"]:
        if "file_name" in image:
            write_picture(folder / "pictures" / image["file_name"])
    yaml_file = folder / "small.yaml"
    yaml_file.write_text(
        "name: small\nval: {json: val.json, images: pictures}\nnovel: [class 2]\n",
        encoding="utf-8",
    )
    return yaml_file


def texts(report: DatasetReport, severity: str = "error") -> list[str]:
    return [problem.text for problem in report.problems if problem.severity == severity]


def only_text(report: DatasetReport, severity: str = "error") -> str:
    """The text of the only problem there is, which has to be of that severity."""
    assert [problem.severity for problem in report.problems] == [severity], report.problems
    return report.problems[0].text


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
    assert (train.name, train.counts.images, train.counts.annotations) == ("train", 3, 3)
    assert train.counts.categories == 3
    assert train.counts.frequencies == ({"r": 1, "c": 1, "f": 1} if name == "lvis" else {})
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
    # the flat json's pictures are looked for in the flat folders, which are not there
    assert any(f"expected 2 pictures in {tmp_path}, got 2 missing" in t for t in texts(report))


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
def test_missing_and_truncated_pictures_are_named(tmp_path: Path, flat: bool) -> None:
    _, pictures = make_lvis(tmp_path, flat)
    (pictures / "train2017" / "5.jpg").unlink()
    truncated = pictures / "train2017" / "2.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    report = inspect_dataset("lvis", tmp_path)
    broken, missing = texts(report)
    assert "lvis_v1_train.json: expected pictures that open" in broken
    assert f"got 1 others: {truncated} (image file is truncated" in broken
    assert f"got 1 missing ones: {pictures / 'train2017' / '5.jpg'}. Download" in missing
    assert [split.images_opened for split in report.splits] == [3, 1]


@pytest.mark.parametrize(("images", "opened"), [("none", 0), ("sample", 2), ("all", 5)])
def test_how_many_pictures_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str, opened: int
) -> None:
    monkeypatch.setattr(inspection, "SAMPLE_SIZE", 2)
    yaml_file = write_custom(tmp_path, contents([f"{i}.png" for i in range(5)]))
    for i in range(5):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"no picture")
    report = inspect_custom(yaml_file, images)
    assert report.splits[0].images_opened == opened
    if opened:
        assert f"got {opened} others" in only_text(report)
        shown = [name for name in range(5) if f"{name}.png" in only_text(report)]
        assert shown == ([0, 4] if images == "sample" else [0, 1, 2, 3, 4])
    else:
        assert report.problems == ()


@pytest.mark.parametrize(
    ("count", "number", "wanted"),
    [(0, 3, []), (3, 3, [0, 1, 2]), (4, 3, [0, 2, 3]), (1000, 4, [0, 333, 666, 999])],
)
def test_the_sample_is_evenly_spaced(count: int, number: int, wanted: list[int]) -> None:
    assert evenly_spaced(range(count), number) == wanted


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    yaml_file = write_custom(tmp_path)
    write_picture(tmp_path / "pictures" / "b.png", HEIGHT, WIDTH)
    assert "b.png (30 x 40 instead of 40 x 30)" in only_text(inspect_custom(yaml_file))


def test_a_turned_photograph_has_the_size_that_training_sees(tmp_path: Path) -> None:
    yaml_file = write_custom(tmp_path, contents(["a.jpg"]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "pictures" / "a.jpg", exif=exif)
    assert inspect_custom(yaml_file).problems == ()


def _set_box(box: list[Any]) -> Callable[[Contents], None]:
    def change(data: Contents) -> None:
        data["annotations"][1]["bbox"] = box

    return change


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
    report = inspect_custom(write_custom(tmp_path, data))
    if outside:
        assert "got 1 that stick out, annotation ids 102." in only_text(report, "warning")
    else:
        assert report.problems == ()


@pytest.mark.parametrize("box", [[1, 1, 0, 5], [1, 1, 5, 0], [5, 5, -2, 5]])
def test_boxes_without_area_are_warnings(tmp_path: Path, box: list[float]) -> None:
    data = contents(["a.png", "b.png"])
    _set_box(box)(data)
    text = only_text(inspect_custom(write_custom(tmp_path, data)), "warning")
    assert "expected boxes of positive size, got 1 others, annotation ids 102." in text


def _change(section: str, index: int, **values: Any) -> Callable[[Contents], None]:
    return lambda data: data[section][index].update(values)


@pytest.mark.parametrize(
    ("change", "severity", "message"),
    [
        (_set_box([1, 2, 3]), "error", "boxes as 4 numbers (x, y, width, height), got 1 others"),
        (_set_box([1, 2, 3, "4"]), "error", "boxes as 4 numbers"),
        (_set_box([1, 2, 3, float("nan")]), "error", "boxes as 4 numbers"),
        (_change("categories", 0, name=" "), "error", "a name for every class, got 1 without"),
        (_change("categories", 0, name=None), "error", "a name for every class"),
        (_change("categories", 0, name="class 3"), "error", "names, got 1 repeated ones: class 3"),
        (_change("categories", 2, id=2), "error", "different class ids, got 1 repeated ones: 2"),
        (
            _change("annotations", 0, image_id=9),
            "error",
            "of images in the json, got 1 others, ids",
        ),
        (
            _change("annotations", 0, category_id=9),
            "warning",
            "of classes in the json, got 1 others",
        ),
        (_change("annotations", 0, id=102), "error", "annotation ids, got 1 repeated ones: 102"),
        (_change("images", 0, width=None), "error", "image sizes in pixels, got 1 images without"),
        (
            _change("images", 0, file_name=""),
            "error",
            "'coco_url', got 1 images with neither, ids 1",
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
    assert message in only_text(inspect_custom(yaml_file, "none"), severity)


def test_an_image_id_that_is_there_twice(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    data["images"][1]["id"] = data["annotations"][1]["image_id"] = 1
    text = only_text(inspect_custom(write_custom(tmp_path, data)))
    assert "different image ids, got 1 repeated ones: 1." in text


def test_long_lists_are_cut(tmp_path: Path) -> None:
    data = contents([f"{i}.png" for i in range(9)])
    for annotation in data["annotations"]:
        annotation["bbox"] = [0, 0, 99, 9]
    text = only_text(inspect_custom(write_custom(tmp_path, data)), "warning")
    assert "got 9 that stick out, annotation ids 101, 102, 103, 104, 105, …. Training" in text


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
    assert [entry.path.name for entry in report.entries if entry.there] == ["val.json", "pictures"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: small\nval: {json: val.json, images: nowhere}\nnovel: r\n", "no folder"),
        ("name: small\nval: {json: gone.json, images: pictures}\nnovel: r\n", "Correct the path"),
        ("name: small\nval: {json: val.json, images: pictures}\nnovel: [class 9]\n", "'class 9'"),
        ("name: small\nnovel: r\n", "at least one of the keys 'train' and 'val'"),
    ],
)
def test_what_a_yaml_may_have_wrong(tmp_path: Path, text: str, message: str) -> None:
    yaml_file = write_custom(tmp_path)
    yaml_file.write_text(text, encoding="utf-8")
    assert message in only_text(inspect_custom(yaml_file))


def test_a_missing_yaml_is_reported(tmp_path: Path) -> None:
    assert "no such file" in only_text(inspect_custom(tmp_path / "gone.yaml"))


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a data set among lvis, coco, got 'voc'"):
        inspect_dataset("voc", tmp_path)
    with pytest.raises(ValueError, match="among none, sample, all, got 'some'"):
        inspect_dataset("lvis", tmp_path, "some")
