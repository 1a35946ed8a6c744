"""The stack imports in a clean interpreter, in any order, and without libGL."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = (
    *("detectron2.modeling", "detectron2.engine", "detectron2.evaluation", "detectron2.data"),
    *("detectron2.model_zoo", "detectron2.export", "lvis", "cv2", "open_clip", "clip", "vild"),
)


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(MODULES, id="order"),
        pytest.param(MODULES[::-1], id="reverse", marks=pytest.mark.slow),
    ],
)
def test_imports_in_a_clean_interpreter(modules: tuple[str, ...]) -> None:
    program = f"import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_opencv_needs_no_libgl() -> None:
    import cv2

    gui = [
        line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI")
    ]
    assert "NONE" in gui[0]
