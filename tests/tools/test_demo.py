"""The command line of the demo: images, broken images, videos, words, results files."""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

import demo
from vild.inference.demo import _video_writer
from vild.inference.detection_files import NamedDetectionsWriter
from vild.inference.inputs import find_images

from .. import malformed, small_shapes

CONFIG = small_shapes.CONFIGS / "shapes" / "vild_ensemble.yaml"
COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
WORDS = "striped red star, plain blue heart"


@pytest.fixture
def photos(opts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with three images, one in a subfolder, and one broken image."""
    monkeypatch.setenv("VILD_CACHE", str(tmp_path / "cache"))
    source = Path(opts[2]).parent / "shapes" / "train"
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, target in (("000001", "a"), ("000002", "b"), ("000003", "more/a")):
        shutil.copy(source / f"{name}.png", folder / f"{target}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half an image")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


Run = Callable[..., int]


def test_a_folder_with_a_broken_image(
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

    # a threshold above every score finds nothing, which is not a failure
    good = ("--config-file", CONFIG, "--input", photos / "a.png", "--vocabulary", WORDS)
    assert run(demo, *good, "--confidence-threshold", "1", *opts) == 0
    assert "a.png: nothing" in capsys.readouterr().out


def test_a_video(run: Run, photos: Path, tmp_path: Path, opts: list[str]) -> None:
    video, out, results = tmp_path / "walk.mp4", tmp_path / "out.mp4", tmp_path / "out.json"
    make_video(video, photos / "a.png", 4)
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
        (("--input", "{photos}/more", "--vocabulary", "crow, crow"), "expected every class once"),
        (("--input", "{photos}", "--novel", "crow"), "expected --vocabulary with --novel"),
        (("--input", "{photos}", "--results", "found.xml"), "as one of"),
        (("--input", "{photos}/a.png", "--vocabulary", "crows.txt"), "at crows.txt: no such file"),
        (("--input", "{photos}/a.png", "--vocabulary", "crows_val"), "a registered dataset"),
        (("--input", "{photos}", "--output", "one.jpg"), "expected a folder as --output for 4"),
        (("--input", "{photos}/a.png", "--output", "{photos}/a.png"), "to differ from the image"),
        (("--input", "{photos}/a.png", "--output", "one.mp4"), "expected a folder, or one of .jpg"),
        (("--input", "{photos}/a.png", "--output", "one.gif"), "expected a folder, or one of .jpg"),
        (("--input", "{photos}", "--confidence-threshold", "30"), "a number from 0 to 1, got '30'"),
        (("--input", "{photos}", "--confidence-threshold", "-1"), "a number from 0 to 1, got '-1'"),
        (("--input", "{photos}", "--confidence-threshold", "nan"), "from 0 to 1, got 'nan'"),
        (("--input", "{photos}", "--precision", "fp8"), "--precision: invalid choice: 'fp8'"),
        (("--webcam", "--max-frames", "0"), "expected an integer of at least 1, got '0'"),
        (("--video-input", "{photos}/gone.mp4"), "no such file"),
        (
            ("--video-input", "{photos}/notes.txt", "--results", "a.json"),
            "OpenCV cannot open the video",
        ),
        (("--video-input", "{photos}/notes.txt"), "expected --output FILE.mp4 or --results"),
        (
            ("--video-input", "{photos}/a.png", "--output", "a.jpg"),
            "expected a video as .mp4, .mkv",
        ),
        (("--input", "{photos}/walk.mp4"), "use --video-input {photos}/walk.mp4"),
        (("--input", ""), "expected images, got the empty path ''"),
        (("--input", "{photos}", "--output", ""), "argument --output: expected a path, got ''"),
        (("--input", "{photos}", "--results", " "), "argument --results: expected a path, got ' '"),
        (("--video-input", ""), "argument --video-input: expected a path, got ''"),
        (("--input", "{photos}", "--novel", "['a']"), "without brackets or quotes around them"),
        (("--input", "{photos}", "--vocabulary", "['a', 'b']"), "without brackets or quotes"),
        (
            ("--input", "{photos}", "--results", "{photos}/a.png/a.csv"),
            "expected --results to be a",
        ),
        (("--input", "{photos}", "--output", "{photos}/notes.txt/a"), "expected --output to be a"),
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
    (photos / "walk.mp4").touch()
    given = [argument.format(photos=photos) for argument in arguments]
    assert run(demo, "--config-file", CONFIG, *given, *opts) == 2
    said = capsys.readouterr().err
    assert message.format(photos=photos) in said
    assert said.splitlines()[-1].startswith(("error: ", "demo: error: "))
    assert not list(photos.parent.glob("*.json"))


def test_outputs_are_checked_before_the_model_is_loaded(
    run: Run,
    photos: Path,
    opts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vild.inference.demo.predictor_from_arguments", lambda *_: 1 / 0)
    common = ("--config-file", CONFIG, "--input", photos)
    for more in (("--output", photos / "a.png"), ("--results", photos), ("--results", "a.xml")):
        assert run(demo, *common, *more, *opts) == 2
        assert capsys.readouterr().err.startswith("error: expected ")


def test_a_full_disk_is_one_line_with_the_file(
    run: Run,
    photos: Path,
    tmp_path: Path,
    opts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NamedDetectionsWriter, "add", full)
    given = ("--config-file", CONFIG, "--input", photos / "a.png", "--vocabulary", WORDS)
    assert run(demo, *given, "--results", tmp_path / "found.json", *opts) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert str(tmp_path / "found.json") in said
    monkeypatch.setattr(Image.Image, "save", full)
    assert run(demo, *given, "--output", tmp_path / "found.png", *opts) == 3
    said = capsys.readouterr().err
    assert said.startswith("failed: ")
    assert str(tmp_path / "found.png") in said
    assert not list(tmp_path.glob("*found*"))


def make_video(file: Path, image: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (160, 160))
    for shift in range(frames):
        writer.write(np.roll(cv2.imread(str(image)), shift * 10, axis=1))
    writer.release()


def test_a_video_that_ends_early_is_reported(
    run: Run, photos: Path, tmp_path: Path, opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    video, results = tmp_path / "walk.avi", tmp_path / "found.csv"
    make_video(video, photos / "a.png", 12)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    given = ("--config-file", CONFIG, "--video-input", video, "--vocabulary", WORDS)
    assert run(demo, *given, "--results", results, *opts) == 3
    said = capsys.readouterr()
    assert re.fullmatch(
        rf"failed: {video}: expected about 12 frames, could read only \d\n", said.err
    )
    assert f"wrote {results}" in said.out
    # all requested frames are present
    assert run(demo, *given, "--results", results, "--max-frames", "1", *opts) == 0


@pytest.mark.parametrize("kind", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("frames", [1, 7])
def test_frames_that_were_not_written_are_an_error(
    kind: str, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out{kind}"

    def write_all() -> None:
        with _video_writer(out, 5.0) as write:
            for _ in range(frames):
                write(np.zeros((64, 64, 3), np.uint8))

    write_all()
    before = out.read_bytes()
    # like on a full disk, which OpenCV does not report
    monkeypatch.setattr(cv2.VideoWriter, "release", lambda _: None)
    with pytest.raises(OSError, match=rf"expected {frames} frames in .*{kind}, \d were written"):
        write_all()
    assert out.read_bytes() == before


def test_formulas_in_a_csv(run: Run, photos: Path, tmp_path: Path, opts: list[str]) -> None:
    results = tmp_path / "found.csv"
    given = ("--config-file", CONFIG, "--input", photos / "a.png", "--results", results)
    words = ("--vocabulary", "=1+1", "--confidence-threshold", "0")
    assert run(demo, *given, *words, *opts) == 0
    with results.open(encoding="utf-8", newline="") as file:
        assert {line["class"] for line in csv.DictReader(file)} == {"'=1+1"}


def test_inputs_are_files_patterns_and_folders(photos: Path) -> None:
    def names(*inputs: str) -> list[str]:
        return [str(p.relative_to(photos)) for p in find_images(inputs)]

    assert names(str(photos)) == ["a.png", "b.png", "broken.jpg", "more/a.png"]
    assert names(f"{photos}/*.png", str(photos / "a.png")) == ["a.png", "b.png"]
    assert names(f"{photos}/**/a.png") == ["a.png", "more/a.png"]
    assert names(str(photos / "notes.txt")) == ["notes.txt"]  # given by name, so it is tried
    for name in ("c.jfif", "d.JPE", "e.webp", "f.tif", "._a.png"):
        (photos / "kinds").mkdir(exist_ok=True)
        shutil.copy(photos / "a.png", photos / "kinds" / name)
    kinds = ["kinds/c.jfif", "kinds/d.JPE", "kinds/e.webp", "kinds/f.tif"]
    assert names(str(photos / "kinds")) == kinds
    assert names(f"{photos}/kinds/*") == kinds
    assert names(str(photos / "kinds" / "._a.png")) == ["kinds/._a.png"]
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
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
    assert drawn.shape == (800, 800, 3)  # small images are enlarged, so that names are legible
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


def test_malformed_images(
    run: Run, tmp_path: Path, opts: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    malformed.write_images(tmp_path / "malformed")
    results = tmp_path / "found.csv"
    given = ("--input", tmp_path / "malformed" / "*", "--vocabulary", WORDS, "--results", results)
    assert run(demo, "--config-file", CONFIG, *given, "--confidence-threshold", "0", *opts) == 3
    said = capsys.readouterr().err
    with results.open(encoding="utf-8", newline="") as file:
        found = {Path(line["file"]).name for line in csv.DictReader(file)}
    for name, (_, message) in malformed.IMAGES.items():
        assert (name in found) == (message == malformed.FINE), name
        assert (f"{name}: " in said) == (message != malformed.FINE), name


# on the web page all input is words, and their number is limited
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
