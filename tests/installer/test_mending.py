"""Edits apply exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.detectron2_edits import DETECTRON2_EDITS
from installer.errors import SetupError
from installer.mending import Edit, apply_edits
from installer.packages import MENDED_PACKAGES


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "a.py").write_text("one = 1\ntwo = 2\n", encoding="utf-8")
    return folder


def test_edits_are_applied_and_signed(package: Path) -> None:
    edits = (Edit("a.py", "one = 1", "one = 10", "why"), Edit("a.py", "two", "three", "why"))
    assert apply_edits(package, edits, "changed by us") == ["a.py"]
    assert (package / "a.py").read_text(encoding="utf-8") == (
        "one = 10\nthree = 2\n# changed by us\n"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("a.py", "four", "x", "why"), "found it 0 time"),
        (Edit("a.py", " = ", "x", "why"), "found it 2 time"),
        (Edit("b.py", "one", "x", "why"), r"expected the file b\.py"),
    ],
)
def test_a_misfit_stops_before_anything_is_written(package: Path, edit: Edit, message: str) -> None:
    good = Edit("a.py", "one = 1", "one = 10", "why")
    with pytest.raises(SetupError, match=message):
        apply_edits(package, (good, edit), "changed by us")
    assert (package / "a.py").read_text(encoding="utf-8") == "one = 1\ntwo = 2\n"


def test_edits_name_each_place_once() -> None:
    for package in MENDED_PACKAGES:
        places = [(edit.file, edit.old) for edit in package.edits]
        assert len(set(places)) == len(places)
        assert all(edit.old != edit.new for edit in package.edits)


def test_no_edit_leaves_a_removed_numpy_alias() -> None:
    for edit in DETECTRON2_EDITS:
        for alias in ("np.int)", "np.bool)", "np.float)", "np.str)", "np.int\n"):
            assert alias not in edit.new
