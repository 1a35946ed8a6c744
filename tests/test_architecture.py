"""Data flows one way: a later part of the package may import an earlier one, never the reverse."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "projects" / "ViLD" / "vild"
COMMAND_LINES = PACKAGE.with_name("vild_cli")  # imported before anything that takes long
ORDER = (
    *("utils", "data", "storage", "checkpoint", "proposals", "embeddings", "modeling"),
    *("evaluation", "reporting", "inference", "export", "web", "engine"),
)
# what only one part may import, so that everything else stays light and testable
ONLY_IN = {"open_clip": "embeddings"}


def violations(package: Path) -> list[str]:
    """Imports in ``package`` that go against the order, one line each."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).parts
        own = parts[0] if len(parts) > 1 else None
        for name in imported_modules(file):
            top, *rest = name.split(".")
            if top in ONLY_IN and own != ONLY_IN[top]:
                found.append(f"{file.relative_to(package)} imports {name}: only {ONLY_IN[top]} may")
            if top != "vild" or not rest or own not in ORDER or rest[0] not in ORDER:
                continue
            if ORDER.index(rest[0]) > ORDER.index(own):
                found.append(f"{file.relative_to(package)} imports {name}: {rest[0]} comes later")
    return found


def imported_modules(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; this project writes them in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_the_package_keeps_the_order() -> None:
    assert not violations(PACKAGE)


def test_command_lines_take_the_standard_library_alone() -> None:
    assert not heavy_imports(COMMAND_LINES)


def heavy_imports(package: Path) -> list[str]:
    """Imports of a package that are neither its own nor Python's, one line each."""
    light = {package.name, *sys.stdlib_module_names}
    return [
        f"{file.relative_to(package)} imports {name}"
        for file in sorted(package.rglob("*.py"))
        for name in imported_modules(file)
        if name.partition(".")[0] not in light
    ]


def test_a_heavy_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os\n\ndef f():\n    from vild import data\n", "utf-8")
    assert heavy_imports(tmp_path) == ["a.py imports vild.data"]


def test_every_part_of_the_package_is_in_the_order() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts <= set(ORDER)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("data/a.py", "from vild.modeling import heads", "modeling comes later"),
        ("data/b.py", "import vild.inference", "inference comes later"),
        ("inference/d.py", "from vild.engine import launch", "engine comes later"),
        ("modeling/c.py", "import open_clip", "only embeddings may"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text, encoding="utf-8")
    (line,) = violations(tmp_path)
    assert complaint in line


def test_files_stay_readable() -> None:
    root = PACKAGE.parents[2]
    for folder in ("projects", "tools", "tests", "datasets"):
        for file in (root / folder).rglob("*.py"):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            assert lines <= 450, f"{file.relative_to(root)} has {lines} lines; split it by concept"
