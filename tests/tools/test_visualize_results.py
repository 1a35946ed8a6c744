from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visualize_results

from .conftest import SIZES, SmallData

Run = Callable[..., int]
Draw = Callable[..., int]


@pytest.fixture
def draw(small: SmallData, run: Run) -> Draw:
    def call(*more: object, entries: list[dict[str, Any]] | None = None) -> int:
        if entries is None:
            entries = [
                {"image_id": i, "category_id": 2, "bbox": [5, 5, 30, 30], "score": 0.9 - 0.1 * i}
                for i in range(1, len(SIZES) + 1)
            ]
        file = small.folder / "results.json"
        file.write_text(json.dumps(entries), encoding="utf-8")
        return run(
            visualize_results,
            "--dataset",
            small.split,
            "--dataset-yaml",
            small.folder / "small.yaml",
            "--results",
            file,
            "--out-dir",
            small.folder / "out",
            *more,
        )

    return call


def drawn(small: SmallData) -> dict[str, np.ndarray]:
    return {p.stem: np.array(Image.open(p)) for p in sorted((small.folder / "out").glob("*.jpg"))}


def test_every_image_is_drawn_beside_its_ground_truth(
    draw: Draw, small: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw() == 0
    images = drawn(small)
    assert list(images) == [str(i) for i in range(1, len(SIZES) + 1)]
    assert images["1"].shape[1] > 1600  # 80 pixels, twice, enlarged
    assert "out: 7 images" in capsys.readouterr().out


def test_images_limit_threshold_and_no_ground_truth(draw: Draw, small: SmallData) -> None:
    assert draw("--images", 7, 2, 1, "--limit", 2, "--no-ground-truth", "--threshold", 0.75) == 0
    images = drawn(small)
    assert list(images) == ["1", "2"]
    assert images["1"].shape == (600, 800, 3)
    # 0.8 is drawn and 0.7 is not: owls are novel, and their boxes warm
    for name, expected in (("1", True), ("2", False)):
        height, width = SIZES[int(name) - 1]
        scale = 800 / max(height, width)
        edge = images[name][round(20 * scale), round(5 * scale), :].astype(int)
        original = np.array(Image.open(small.image(int(name))))[20, 5].astype(int)
        assert (edge[0] > max(edge[2], 150) + 50) == expected, (edge, original)


def test_a_broken_image_is_reported_and_the_rest_goes_on(
    draw: Draw, small: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    small.image(3).write_bytes(b"no image")
    small.image(5).unlink()
    assert draw() == 3
    assert list(drawn(small)) == ["1", "2", "4", "6", "7"]
    printed = capsys.readouterr().out
    assert "failed: image 3: " in printed
    assert "failed: image 5: " in printed
    assert "out: 5 images" in printed


def test_a_broken_mask_fails_its_image_alone(draw: Draw, small: SmallData) -> None:
    entry = {"image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9}
    assert draw(entries=[{**entry, "segmentation": {"size": [3, 3], "counts": "a"}}]) == 3
    assert "2" not in drawn(small)
    assert len(drawn(small)) == len(SIZES) - 1


def test_without_detections_the_ground_truth_is_there(draw: Draw, small: SmallData) -> None:
    assert draw(entries=[]) == 0
    assert len(drawn(small)) == len(SIZES)


@pytest.mark.parametrize(
    ("more", "entries", "message"),
    [
        (["--images", "99"], [], "no image 99"),
        ([], [{"image_id": 99, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}], "got 99"),
        (
            [],
            [{"image_id": 1, "category_id": 99, "score": 1, "bbox": [0, 0, 1, 1]}],
            "category_id 99",
        ),
        (["--dataset", "nothing"], [], "nothing"),
    ],
)
def test_errors_are_one_line(
    draw: Draw,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    entries: list[dict[str, Any]],
    message: str,
) -> None:
    assert draw(*more, entries=entries) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--limit", "0", "expected an integer of at least 1, got '0'"),
        ("--threshold", "nan", "expected a number from 0 to 1, got 'nan'"),
        ("--threshold", "30", "expected a number from 0 to 1, got '30'"),
        ("--out-dir", "", "expected a path, got ''"),
        ("--results", "", "expected a path, got ''"),
    ],
)
def test_options_out_of_range(
    draw: Draw, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert draw(option, value, entries=[]) == 2
    assert f"argument {option}: {message}\n" in capsys.readouterr().err


def test_the_folder_is_checked_before_the_work(
    draw: Draw, small: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw("--out-dir", str(small.image(1)), entries=[]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected --out-dir to be a folder that can be written, got ")
    assert error.count("\n") == 1


def test_results_with_empty_masks_and_scores_as_text(small: SmallData, draw: Draw) -> None:
    entry = {"image_id": "1", "category_id": 2, "bbox": [5, 5, 30, 30]}
    assert draw(entries=[{**entry, "score": "0.9", "segmentation": []}]) == 0
    assert "1" in drawn(small)


def test_a_broken_mask_stops_its_image_alone(
    small: SmallData, draw: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"category_id": 2, "bbox": [5, 5, 30, 30], "score": 0.9}
    broken = {"size": [1, 1], "counts": "b'0'"}
    entries = [{**entry, "image_id": 1, "segmentation": broken}, {**entry, "image_id": 2}]
    assert draw(entries=entries) == 3
    assert "failed: image 1: run lengths of [1, 1] pixels" in capsys.readouterr().out
    assert set(drawn(small)) == {str(n) for n in range(2, len(SIZES) + 1)}


def test_other_classes_are_left_out(
    small: SmallData, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"image_id": 1, "bbox": [5, 5, 30, 30], "score": 0.9}
    assert draw(entries=[{**entry, "category_id": 2}, {**entry, "category_id": 99}]) == 0
    assert len(drawn(small)) == len(SIZES)
    assert "1 detections have classes that the dataset lacks, category_id 99" in caplog.text
