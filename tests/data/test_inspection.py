"""Findings of the dataset inspection, on small datasets made here."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from vild.data import inspection
from vild.data.inspection import evenly_spaced, inspect_custom, inspect_dataset, layout_in_use

from ..malformed import IMAGES
from .conftest import (
    HEIGHT,
    WIDTH,
    contents,
    expect_small,
    make_coco,
    make_lvis,
    only_text,
    problems_of,
    texts,
    write_custom,
    write_image,
    write_json,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_small(monkeypatch)


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
    assert all(entry.exists for entry in report.entries)
    train, val = report.splits
    assert train.counts is not None
    assert (train.name, train.counts.images, train.counts.annotations) == ("train", 3, 9)
    assert train.counts.categories == 3
    assert train.counts.objects == {}  # the official novel classes are not in this small dataset
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
    assert not any(entry.exists for entry in report.entries)
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
    # images of the flat json are expected in the flat folders, which do not exist
    (missing,) = report.splits[1].problems
    assert missing.text == (
        f"{report.splits[1].json_file}: expected 2 images in {tmp_path}, got 2 names without a "
        "file: val2017/4.jpg, train2017/5.jpg. Correct the folder or the names, or get the images. "
        "The folder contains annotations, coco, lvis."
    )


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
        (lvis.splits[0], ["3 images instead of 100,170", "3 classes instead of 1,203"]),
        (lvis.splits[1], ["2 images instead of 19,809", "3 classes instead of 1,203"]),
        (coco.splits[0], ["3 images instead of 118,287", "3 classes instead of 80"]),
        (coco.splits[1], ["2 images instead of 5,000", "3 classes instead of 80"]),
    ):
        if report.json_file.name.startswith("lvis"):
            wrong += ["1 frequent classes instead of 405", "1 common classes instead of 461"]
            wrong += ["1 rare classes instead of 337"]
        (problem,) = report.problems
        assert problem.severity == "error"
        assert problem.text == (
            f"{report.json_file}: expected the official file, got {', '.join(wrong)}. For other "
            "data, see --custom in datasets/README.md."
        )


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
    want = f"{json_file}: expected readable images of the size in the json, got 1 others: "
    assert broken.startswith(want)
    assert f" {truncated}: it is truncated or damaged (OSError: " in broken
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
    """Return a JPEG of full length whose download stopped."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:-300] + bytes(300)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_with_zeroed_end, "it is truncated or damaged (OSError: "),
        (IMAGES["floats.tiff"][0], "its values are floats of unknown range. Convert it to 8"),
        (IMAGES["no_end.jpg"][0], "it is truncated or damaged (OSError: "),
        (IMAGES["script.eps"][0], "PostScript is not supported. Convert it to PNG or JPEG"),
    ],
)
def test_images_that_training_refuses_are_errors(
    tmp_path: Path, make: Callable[[], bytes], complaint: str
) -> None:
    yaml_file = write_custom(tmp_path)
    image = tmp_path / "images" / "b.png"
    image.write_bytes(make())
    text = only_text(inspect_custom(yaml_file))
    assert "expected readable images of the size in the json, got 1 others: " in text
    assert f" {image}: {complaint}" in text
    assert text.endswith(". Replace or correct them.")


NAMES_ON_DISK = [  # name in the json, name on disk
    ("sub\\a.png", "sub/a.png"),
    ("my%20image.png", "my image.png"),
    ("100%.png", "100%.png"),
    ("A.PNG", "a.png"),
    ("a.JPG", "A.jpg"),
    ("sub/A.png", "sub/a.png"),
    ("u\u0308.png", "\u00fc.png"),
    ("\u00fc.png", "u\u0308.png"),
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
            "folder or the names, or get the images. The folder contains a.PNG, a.png.",
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
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert inspect_custom(yaml_file).problems == ()


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
    assert [entry.path.name for entry in report.entries if entry.exists] == ["val.json", "images"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: small\nval: {json: val.json, images: nowhere}\nnovel: r\n", "expected a folder"),
        ("name: small\nval: {json: gone.json, images: images}\nnovel: r\n", "Correct the path"),
        ("name: small\nval: {json: val.json, images: images}\nnovel: [class 9]\n", "'class 9'"),
        (
            f"name: small\nval: {{json: {'x' * 999}, images: images}}\nnovel: r\n",
            "xxx, found none. Correct the path in the yaml, or put it there.",
        ),
        ("name: small\nnovel: r\n", "at least one of the keys 'train' and 'val'"),
    ],
)
def test_what_a_yaml_may_have_wrong(tmp_path: Path, text: str, message: str) -> None:
    yaml_file = write_custom(tmp_path)
    yaml_file.write_text(text, encoding="utf-8")
    assert message in only_text(inspect_custom(yaml_file))


def test_a_missing_yaml_is_reported(tmp_path: Path) -> None:
    assert "No such file" in only_text(inspect_custom(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("listed", "severity", "got"),
    [
        (["cam1/a.png", "cam2/a.png"], "error", "1 files that several images share: {} (cam1/"),
        (["cam1/a.png", "cam1/a.png"], "warning", "1 listed more than once: {} ("),
        (["images/a.png", "a.png"], "warning", "1 listed more than once: {} ("),
        (["data/images/a.png", "images\\A.PNG"], "warning", "1 listed more than once: {} ("),
    ],
)
def test_two_names_of_one_file(tmp_path: Path, listed: list[str], severity: str, got: str) -> None:
    yaml_file = write_custom(tmp_path, contents(["a.png", "b.png"]))
    write_json(tmp_path / "val.json", contents(listed))
    expected = got.format(tmp_path / "images" / "a.png")
    assert f", got {expected}" in only_text(inspect_custom(yaml_file), severity)
