"""Takes back each edit of the mended packages in a copy: a test of this folder must then fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from installer.mending import Edit
from installer.packages import MENDED_PACKAGES, MendedPackage

HERE = Path(__file__).parent
# which tests look at which part of the packages
TESTS = {
    "data/transforms": "test_layers.py",
    "layers": "test_layers.py",
    "structures": "test_layers.py",
    "modeling": "test_layers.py",
    "data/": "test_data.py",
    "evaluation": "test_evaluators.py",
    "eval.py": "test_evaluators.py",
    "utils": "test_visualizers.py",
    "engine": "test_engine.py",
    "export": "test_engine.py",
    "model_zoo": "test_engine.py",
    "clip.py": "test_imports.py",
}
EDITS = [(package, edit) for package in MENDED_PACKAGES for edit in package.edits]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("package", "edit"), EDITS, ids=[f"{p.module}/{e.file}-{i}" for i, (p, e) in enumerate(EDITS)]
)
def test_without_the_edit_a_test_fails(package: MendedPackage, edit: Edit, tmp_path: Path) -> None:
    spec = importlib.util.find_spec(package.module)
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    if not (installed / "CHANGES_OF_THIS_BUILD.md").is_file():
        pytest.skip(f"slow, and {package.module} is not our build here")
    if "np.bool" in edit.old and hasattr(np, "bool"):
        pytest.skip("slow, and numpy 2 has np.bool again: numpy 1.26 needs this edit")
    shutil.copytree(installed, tmp_path / package.module)
    file = tmp_path / package.module / edit.file
    text = file.read_text(encoding="utf-8")
    broken = text.replace(edit.new, edit.old) if edit.new else edit.old + text
    assert broken != text
    file.write_text(broken, encoding="utf-8")
    tests = HERE / next(name for part, name in TESTS.items() if edit.file.startswith(part))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        timeout=300,
    )
    assert done.returncode in (1, 2), f"no test of {tests.name} fails without: {edit.why}"
