from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import result_page
from experiments.result_page import stage_section
from experiments.stages import Record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "nan"), "expected a number from 0 to 1, got 'nan'"),
        (("--images", "0"), "expected an integer of at least 1, got '0'"),
        (("--region-images", "-1"), "expected an integer of at least 1, got '-1'"),
        (("--out", ""), "expected a path, got ''"),
        (("--run", "=folder"), "expected --run NAME=FOLDER, got '=folder'"),
        (("--run", "name="), "expected --run NAME=FOLDER, got 'name='"),
        (("--run", "a=c"), "expected a different NAME for each --run, got one twice"),
        (("--out", "{folder}"), "expected --out to be a file that can be written, got "),
    ],
)
def test_impossible_arguments(
    arguments: tuple[str, str],
    message: str,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(folder=tmp_path) for argument in arguments]
    out = ("--out", tmp_path / "index.html") if "--out" not in given else ()
    assert run(result_page, "--dataset", "shapes_val", "--run", "a=b", *out, *given) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_small_sizes_are_shown_in_small_units() -> None:
    stage = Record({"command": ["a.py"]}, "", 3.0, 4_200_000, "one", 0)
    section = stage_section([stage])
    assert section.table is not None
    assert section.table.rows[0][-1] == "4.2 MB"
    assert "at most 4.2 MB of memory" in section.text
