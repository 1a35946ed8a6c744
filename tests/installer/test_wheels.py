"""The mended wheel, built from a source archive that the test makes itself; no network."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from installer.errors import SetupError
from installer.mending import Edit
from installer.packages import MendedPackage
from installer.pip import Pip
from installer.wheels import build_wheel

FILES = {
    "setup.py": "from setuptools import setup\nsetup(name='thing', version='1.0', packages=[])\n",
    "PKG-INFO": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
    "LICENSE": "do as you like\n",
    "thing/__init__.py": "value = old()\n",
    "thing/conf/x.yaml": "a: 1\n",
    "thing/projects/__init__.py": "",
    "projects/extra/__init__.py": "",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sdist in a folder that pip takes instead of an index."""
    path = tmp_path / "links" / "thing-1.0.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, text in FILES.items():
            member = tarfile.TarInfo(f"thing-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    # a folder is no package index: today's pip downloads from it as it is
    monkeypatch.setattr(Pip, "for_downloads", lambda self, work_dir: self)
    return path


def package(archive: Path, **changes: object) -> MendedPackage:
    values = {
        "name": "thing",
        "module": "thing",
        "version": "1.0+pure",
        "summary": 'a "thing"',
        "source": "thing==1.0",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "upstream": "https://example.org/thing",
        "license_file": "LICENSE",
        "edits": (Edit("__init__.py", "old()", "new()", "old is gone"),),
        "requires": ("tqdm>=4",),
        "extra_packages": {"thing.projects.extra": "projects/extra"},
        "data": ("conf/**/*",),
    }
    return MendedPackage(**{**values, **changes})


def test_wheel_holds_the_mended_sources(archive: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    wheel = build_wheel(package(archive), Pip(Path(sys.executable)), work)
    assert wheel.name == "thing-1.0+pure-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        assert {"thing/conf/x.yaml", "thing/projects/extra/__init__.py"} <= names
        assert contents.read("thing/__init__.py").startswith(b"value = new()\n# Changed from thing")
        assert b"old is gone" in contents.read("thing/CHANGES_OF_THIS_BUILD.md")
        metadata = contents.read("thing-1.0+pure.dist-info/METADATA").decode()
        assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Dist: tqdm>=4" in metadata
    assert 'Summary: a "thing"' in metadata
    assert "Project-URL: Source, https://example.org/thing" in metadata


def test_wrong_checksum_is_refused(archive: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(SetupError, match=r"downloading thing==1\.0: .*sha256 differs"):
        build_wheel(package(archive, sha256="0" * 64), Pip(Path(sys.executable)), work)


def test_unexpected_source_is_refused(archive: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    edit = Edit("__init__.py", "never there", "x", "why")
    with pytest.raises(SetupError, match="found it 0 time"):
        build_wheel(package(archive, edits=(edit,)), Pip(Path(sys.executable)), work)


def test_unreachable_index_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SetupError, match="installing x: no package index could be reached"):
        Pip(Path(sys.executable)).run(
            "install", "--target", str(tmp_path), "no-such-thing", doing="installing x"
        )
