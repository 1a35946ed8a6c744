"""The demo on the command line: pictures, broken ones, videos, words, files of detections."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

import demo
from vild.inference.inputs import find_pictures

from .. import malformed, small_shapes

CONFIG = small_shapes.CONFIGS / "shapes" / "vild_ensemble.yaml"
COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
WORDS = "striped red star, plain blue heart"


@pytest.fixture
def photos(opts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures, one of them deeper, and one that is none."""
    monkeypatch.setenv("VILD_CACHE", str(tmp_path / "cache"))
    source = Path(opts[2]).parent / "shapes" / "train"
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, target in (("000001", "a"), ("000002", "b"), ("000003", "more/a")):
        shutil.copy(source / f"{name}.png", folder / f"{target}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a picture")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


Run = Callable[..., int]


def test_a_folder_with_a_broken_picture(
    run: Run, photos: Path, tmp_path: Path, opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "found", tmp_path / "found.json"
    common = ("--config-file", CONFIG, "--input", photos, "--vocabulary", WORDS)
    threshold = ("--confidence-threshold", "0")
    code = run(demo, *common, *threshold, "--output", out, "--results", results, *opts)
    assert code == 3
    assert "broken.jpg" in capsys.readouterr().err
    drawn = sorted(file.name for file in out.iterdir())
    assert len(drawn) == 3
    assert "b.jpg" in drawn
    found = json.loads(results.read_text(encoding="utf-8"))
    assert {entry["image_id"] for entry in found} == {1, 2, 3}
    assert {entry["category_name"] for entry in found} <= {"striped red star", "plain blue heart"}
    for entry in found:
        assert Path(entry["file_name"]).is_file()
        assert entry["category_id"] in (1, 2)
        mask = mask_util.decode(entry["segmentation"])
        assert mask.shape == (160, 160)
        x, y, w, h = entry["bbox"]
        assert 0 <= x <= x + w <= 160.1
        assert 0 <= y <= y + h <= 160.1

    table = tmp_path / "found.csv"
    assert run(demo, *common, *threshold, "--results", table, *opts) == 3
    with table.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found)
    for line, entry in zip(lines, found, strict=True):
        assert line["class"] == entry["category_name"]
        assert line["novel"] == "1"
        assert float(line["score"]) == pytest.approx(entry["score"], abs=1e-4)

    novel = ("--novel", "plain blue heart")
    assert run(demo, *common, *threshold, *novel, "--results", table, *opts) == 3
    with table.open(encoding="utf-8", newline="") as file:
        flags = {(line["class"], line["novel"]) for line in csv.DictReader(file)}
    assert flags <= {("plain blue heart", "1"), ("striped red star", "0")}

    # above every score nothing is found, and that is no failure
    good = ("--config-file", CONFIG, "--input", photos / "a.png", "--vocabulary", WORDS)
    assert run(demo, *good, "--confidence-threshold", "1", *opts) == 0
    assert "a.png: nothing" in capsys.readouterr().out


def test_a_video(run: Run, photos: Path, tmp_path: Path, opts: list[str]) -> None:
    video, out, results = tmp_path / "walk.mp4", tmp_path / "out.mp4", tmp_path / "out.json"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (160, 160))
    picture = cv2.imread(str(photos / "a.png"))
    for shift in range(4):
        writer.write(np.roll(picture, shift * 10, axis=1))
    writer.release()
    arguments = ("--config-file", CONFIG, "--video-input", video, "--vocabulary", WORDS)
    files = ("--confidence-threshold", "0", "--output", out, "--results", results)
    assert run(demo, *arguments, *files, "--max-frames", "3", *opts) == 0
    capture = cv2.VideoCapture(str(out))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == 5.0
    assert capture.read()[1].std() > 10
    found = json.loads(results.read_text(encoding="utf-8"))
    assert {entry["frame"] for entry in found} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "nowhere.jpg"), "no such file"),
        (("--input", "{photos}/more", "--vocabulary", "crow, crow"), "may be there once"),
        (("--input", "{photos}", "--novel", "crow"), "expected --vocabulary beside --novel"),
        (("--input", "{photos}", "--results", "found.xml"), "as one of"),
        (("--input", "{photos}/a.png", "--vocabulary", "crows.txt"), "at crows.txt: no such file"),
        (("--input", "{photos}/a.png", "--vocabulary", "crows_val"), "a registered data set"),
        (("--input", "{photos}", "--output", "one.jpg"), "expected a folder as --output for 4"),
        (("--input", "{photos}/a.png", "--output", "{photos}/a.png"), "than the image itself"),
        (("--input", "{photos}/a.png", "--output", "one.mp4"), "expected a folder, or one of .jpg"),
        (("--input", "{photos}/a.png", "--output", "one.gif"), "expected a folder, or one of .jpg"),
        (("--input", "{photos}", "--confidence-threshold", "30"), "a number from 0 to 1, got '30'"),
        (("--input", "{photos}", "--confidence-threshold", "-1"), "a number from 0 to 1, got '-1'"),
        (("--input", "{photos}", "--confidence-threshold", "nan"), "from 0 to 1, got 'nan'"),
        (("--webcam", "--max-frames", "0"), "expected an integer of at least 1, got '0'"),
        (("--video-input", "{photos}/gone.mp4"), "no such file"),
        (("--video-input", "{photos}/notes.txt", "--results", "a.json"), "OpenCV cannot open it"),
        (("--video-input", "{photos}/notes.txt"), "expected --output FILE.mp4 or --results"),
    ],
)
def test_impossible_arguments(
    run: Run,
    photos: Path,
    opts: list[str],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos.parent)
    given = [argument.format(photos=photos) for argument in arguments]
    assert run(demo, "--config-file", CONFIG, *given, *opts) == 2
    assert message in capsys.readouterr().err
    assert not list(photos.parent.glob("*.json"))


def test_inputs_are_files_patterns_and_folders(photos: Path) -> None:
    def names(*inputs: str) -> list[str]:
        return [str(p.relative_to(photos)) for p in find_pictures(inputs)]

    assert names(str(photos)) == ["a.png", "b.png", "broken.jpg", "more/a.png"]
    assert names(f"{photos}/*.png", str(photos / "a.png")) == ["a.png", "b.png"]
    assert names(f"{photos}/**/a.png") == ["a.png", "more/a.png"]
    assert names(str(photos / "notes.txt")) == ["notes.txt"]  # named, so tried
    for name in ("c.jfif", "d.JPE", "e.webp", "f.tif", "._a.png"):
        (photos / "kinds").mkdir(exist_ok=True)
        shutil.copy(photos / "a.png", photos / "kinds" / name)
    kinds = ["kinds/c.jfif", "kinds/d.JPE", "kinds/e.webp", "kinds/f.tif"]
    assert names(str(photos / "kinds")) == kinds
    assert names(f"{photos}/kinds/*") == kinds
    assert names(str(photos / "kinds" / "._a.png")) == ["kinds/._a.png"]
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        names(str(photos / "empty"))


@pytest.mark.parametrize(
    "name", ["one.jpg", "one.PNG", "new/one.webp", "one.tif", "one.bmp", "one.jpeg"]
)
def test_one_image_is_written_to_a_file(
    run: Run, photos: Path, tmp_path: Path, opts: list[str], name: str
) -> None:
    given = ("--input", photos / "a.png", "--vocabulary", WORDS, "--output", tmp_path / name)
    assert run(demo, "--config-file", CONFIG, *given, "--confidence-threshold", "0", *opts) == 0
    drawn = cv2.imread(str(tmp_path / name))
    assert drawn.shape == (800, 800, 3)  # small images are enlarged, for the names
    plain = cv2.resize(cv2.imread(str(photos / "a.png")), (800, 800))
    assert np.abs(drawn.astype(int) - plain).mean() > 1


def test_a_folder_may_have_the_name_of_an_image(
    run: Run, photos: Path, tmp_path: Path, opts: list[str]
) -> None:
    (tmp_path / "one.jpg").mkdir()
    given = ("--input", photos / "a.png", "--vocabulary", WORDS, "--output", tmp_path / "one.jpg")
    assert run(demo, "--config-file", CONFIG, *given, *opts) == 0
    assert (tmp_path / "one.jpg" / "a.jpg").is_file()


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs ../shared/data/coco_mini")
def test_real_photographs(run: Run, tmp_path: Path, opts: list[str], photos: Path) -> None:
    files = sorted((COCO_MINI / "val2017").glob("*.jpg"))[:3]
    out = tmp_path / "found"
    arguments = ("--config-file", CONFIG, "--input", *files, "--output", out)
    assert run(demo, *arguments, "--vocabulary", "coco", *opts) == 0
    assert sorted(file.stem for file in out.iterdir()) == [file.stem for file in files]


def test_malformed_pictures(
    run: Run, tmp_path: Path, opts: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    malformed.write_pictures(tmp_path / "malformed")
    results = tmp_path / "found.csv"
    given = ("--input", tmp_path / "malformed" / "*", "--vocabulary", WORDS, "--results", results)
    assert run(demo, "--config-file", CONFIG, *given, "--confidence-threshold", "0", *opts) == 3
    said = capsys.readouterr().err
    with results.open(encoding="utf-8", newline="") as file:
        found = {Path(line["file"]).name for line in csv.DictReader(file)}
    for name, (_, message) in malformed.PICTURES.items():
        assert (name in found) == (message == malformed.FINE), name
        assert (f"{name}: " in said) == (message != malformed.FINE), name


# on a page all are words, and their number is limited
ON_A_PAGE = ("a file's name", "a path", "too many")


@pytest.mark.parametrize("name", [n for n in malformed.WORDS if n not in ON_A_PAGE])
def test_malformed_words(
    name: str,
    run: Run,
    tmp_path: Path,
    opts: list[str],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, message = malformed.WORDS[name]
    given = ("--input", photos / "a.png", "--vocabulary", words)
    code = run(demo, "--config-file", CONFIG, *given, *opts)
    assert code == (0 if message == malformed.FINE else 2)
    assert code == 0 or "error: " in capsys.readouterr().err
