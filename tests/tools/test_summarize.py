from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import summarize
from vild.reporting.summary import MISSING

Run = Callable[..., int]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folder, file = tmp_path / "trained", tmp_path / "tested" / "lvis_v1_val_metrics.json"
    folder.mkdir()
    lines = [{"iteration": 19, "total_loss": 2.0}, {"iteration": 20, "segm/AP": 3, "segm/APr": 1}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    file.parent.mkdir()
    file.write_text(json.dumps({"segm": {"AP": 4.0, "APr": 2.0}}), encoding="utf-8")
    return [folder, file]


def test_runs_become_one_table(
    runs: list[Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    names = ("--names", "first", "second")
    assert run(summarize, *runs, *names, "--out-dir", out, "--reference") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"| first | {MISSING} | measured | 1.0 | {MISSING} | {MISSING} | 3.0 |" in lines
    assert f"| second | lvis_v1_val | measured | 2.0 | {MISSING} | {MISSING} | 4.0 |" in lines
    assert sum("published (" in line for line in lines) == 6
    assert (out / "summary.csv").read_text(encoding="utf-8").startswith("method,data,figures,task,")
    with Image.open(out / "summary.png") as image:
        image.load()
        assert image.width == 1320


def test_without_reference_nothing_is_published(
    runs: list[Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(summarize, runs[1], "--out-dir", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "| tested | lvis_v1_val |" in printed
    assert "published" not in printed.lower()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "bbox"], "has no results for bbox"),
        (["--names", "one"], "a name for each of 2 runs"),
    ],
)
def test_errors_are_one_line(
    runs: list[Path],
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert run(summarize, *runs, *more, "--out-dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_broken_file_is_named(
    runs: list[Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs[1].write_text("{", encoding="utf-8")
    assert run(summarize, *runs, "--out-dir", tmp_path / "out") == 2
    assert str(runs[1]) in capsys.readouterr().err
