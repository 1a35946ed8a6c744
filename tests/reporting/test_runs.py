from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest

from vild.reporting.runs import read_runs


def write_log(folder: Path, *entries: dict[str, Any], tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "metrics.json").write_text(text + tail, encoding="utf-8")
    return folder


def write_metrics(file: Path, **contents: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(contents), encoding="utf-8")
    return file


LOSSES = (
    {"iteration": 19, "total_loss": 3.5, "loss_cls": 2.0, "lr": 0.01},
    {"iteration": 39, "total_loss": 2.5, "loss_cls": 1.0, "lr": 0.01},
)


def test_curves_and_last_results(tmp_path: Path) -> None:
    folder = write_log(
        tmp_path / "mine",
        LOSSES[0],
        {"iteration": 20, "segm/AP": 1.0, "segm/APr": float("nan"), "segm/APl": -100.0},
        LOSSES[1],
        {"iteration": 40, "segm/AP": 2.0, "segm/APr": 0.5, "segm/APl": -100.0},
    )
    (run,) = read_runs([folder])
    assert (run.name, run.data) == ("mine", "")
    assert run.history["total_loss"].tolist() == [[19, 3.5], [39, 2.5]]
    assert run.history["loss_cls"].tolist() == [[19, 2], [39, 1]]
    assert run.history["segm/AP"].tolist() == [[20, 1], [40, 2]]
    assert math.isnan(run.history["segm/APr"][0, 1])
    assert "lr" not in run.history
    assert run.results["segm"]["AP"] == 2
    assert run.results["segm"]["APr"] == 0.5
    assert math.isnan(run.results["segm"]["APl"])  # -100 means undefined


def test_a_half_written_last_line_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_log(tmp_path / "a", *LOSSES, tail='{"iteration": 59, "total_l')
    with caplog.at_level(logging.WARNING):
        (run,) = read_runs([folder / "metrics.json"])
    assert run.name == "a"
    assert run.history["total_loss"][:, 0].tolist() == [19, 39]
    assert "incomplete" in caplog.text


def test_what_a_resumed_run_writes_again_replaces_what_was_there(tmp_path: Path) -> None:
    again = {"iteration": 19, "total_loss": 3.0, "loss_cls": float("nan")}
    (run,) = read_runs([write_log(tmp_path / "a", *LOSSES, again)])
    assert run.history["total_loss"].tolist() == [[19, 3.0], [39, 2.5]]
    assert math.isnan(run.history["loss_cls"][0, 1])


def test_several_data_sets_are_several_runs(tmp_path: Path) -> None:
    entry = {"iteration": 40, "one/bbox/AP": 1.0, "two/bbox/AP": 2.0}
    first, second = read_runs([write_log(tmp_path / "a", *LOSSES, entry)])
    assert (first.data, first.results["bbox"]["AP"]) == ("one", 1)
    assert (second.data, second.results["bbox"]["AP"]) == ("two", 2)
    assert second.history["bbox/AP"].tolist() == [[40, 2]]
    assert "total_loss" in first.history
    assert "total_loss" not in second.history


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_metrics(tmp_path: Path, nested: bool) -> None:
    metrics = {"bbox": {"AP": 10.5, "APr": None}, "segm": {"AP": 9.25}}
    contents = {"images": 3, "metrics": metrics} if nested else metrics
    file = write_metrics(tmp_path / "a" / "shapes_val_metrics.json", **contents)
    for given in (file, file.parent):
        (run,) = read_runs([given])
        assert (run.name, run.data) == ("a", "shapes_val")
        assert run.results["segm"] == {"AP": 9.25}
        assert math.isnan(run.results["bbox"]["APr"])
        assert not run.history


def test_the_configuration_names_the_data_set(tmp_path: Path) -> None:
    config = tmp_path / "a" / "config.yaml"
    config.parent.mkdir()
    config.write_text("DATASETS:\n  TEST:\n  - shapes_val\n", encoding="utf-8")
    os.utime(config, (1, 1))
    folder = write_log(tmp_path / "a", *LOSSES, {"iteration": 40, "bbox/AP": 1.0})
    write_metrics(folder / "other_metrics.json", bbox={"AP": 3.0})
    assert {run.data: run.results["bbox"]["AP"] for run in read_runs([folder])} == {
        "shapes_val": 1,
        "other": 3,
    }
    (run,) = read_runs([folder / "metrics.json"])
    assert run.data == "shapes_val"
    assert run.history["bbox/AP"].tolist() == [[40, 1]]
    # written after training, by an evaluation that may have used another dataset
    os.utime(config, (2e9, 2e9))
    (run,) = read_runs([folder / "metrics.json"])
    assert run.data == ""
    assert run.history["bbox/AP"].tolist() == [[40, 1]]


def test_a_file_of_metrics_goes_before_the_log(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "a", *LOSSES, {"iteration": 40, "bbox/AP": 1.0})
    write_metrics(folder / "shapes_val_metrics.json", bbox={"AP": 3.0})
    (run,) = read_runs([folder])
    assert (run.data, run.results["bbox"]["AP"]) == ("shapes_val", 3)
    assert run.history["bbox/AP"].tolist() == [[40, 1]]
    assert "total_loss" in run.history
    # with two files, the dataset of the log's figures is ambiguous
    write_metrics(folder / "shapes_train_metrics.json", bbox={"AP": 4.0})
    assert [run.data for run in read_runs([folder])] == ["shapes_train", "shapes_val"]


def test_names(tmp_path: Path) -> None:
    same = [write_log(tmp_path / part / "run", *LOSSES) for part in "ab"]
    assert [run.name for run in read_runs(same)] == list(map(str, same))
    assert [run.name for run in read_runs(same, ["x", "y"])] == ["x", "y"]
    with pytest.raises(ValueError, match="a name for each of 2 runs, got 1"):
        read_runs(same, ["x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("not json\n" + json.dumps(LOSSES[0]), "line 1"),
        (json.dumps(LOSSES[0]) + '\n{"total\n' + json.dumps(LOSSES[1]), "line 2"),
        ('{"iter', "line 1"),
        ("[1, 2]", "line 1"),
        ("\x00\x01", "line 1"),
    ],
)
def test_broken_logs_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_runs([file])
    assert str(file) in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OUTPUT_DIR") as caught:
        read_runs([tmp_path])
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match=r"nothing/metrics\.json: No such file"):
        read_runs([tmp_path / "nothing" / "metrics.json"])
    file = write_metrics(tmp_path / "x_metrics.json", AP=3)
    with pytest.raises(ValueError, match="metrics by task") as caught:
        read_runs([tmp_path])
    assert str(file) in str(caught.value)
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a json file"):
        read_runs([tmp_path / "metrics.json"])
