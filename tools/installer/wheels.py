"""Building of the wheel of a :class:`~installer.packages.MendedPackage`."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

from installer.errors import SetupError
from installer.mending import apply_edits
from installer.packages import MendedPackage
from installer.pip import Pip

_PROJECT = "ViLD's tools/install_detectron2.py"
BUILD_NOTE = "CHANGES_OF_THIS_BUILD.md"  # in the package's folder; marks a build as ours


def is_outdated(package: MendedPackage, origin: Path) -> bool:
    """Return whether the package installed at ``origin`` is our build of an older recipe."""
    note = origin / BUILD_NOTE
    return note.is_file() and package.recipe not in note.read_text(encoding="utf-8")


def build_wheel(package: MendedPackage, pip: Pip, work_dir: Path) -> Path:
    """Download, check, patch and pack ``package``.

    Args:
        package: package to build.
        pip: client of an environment with setuptools, wheel and, for Detectron2, torch.
        work_dir: an empty folder for all files.

    Returns:
        Path of the wheel.

    Raises:
        SetupError: the download failed, its checksum differs, or an edit does not fit.
    """
    unpacked = _unpack(_download(package, pip, work_dir), work_dir / "unpacked")
    stage = _stage(package, unpacked, work_dir / "stage")
    out_dir = work_dir / "wheel"
    pip.run(
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out_dir),
        str(stage),
        doing=f"building the wheel of {package.name}",
    )
    (wheel,) = out_dir.glob("*.whl")
    return wheel


def _download(package: MendedPackage, pip: Pip, work_dir: Path) -> Path:
    out_dir = work_dir / "download"
    requirements = work_dir / "requirements.txt"
    requirements.write_text(f"{package.source} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip.for_downloads(work_dir).run(
        "download",
        "--quiet",
        "--no-deps",
        # pip reads the metadata of its downloads in this environment, which has torch, instead of
        # in an isolated one
        "--no-build-isolation",
        "--require-hashes",
        "--dest",
        str(out_dir),
        "--requirement",
        str(requirements),
        doing=f"downloading {package.source}",
    )
    (file,) = out_dir.iterdir()
    return file


def _unpack(archive: Path, out_dir: Path) -> Path:
    """Unpack an sdist or a wheel and return the folder that holds its contents."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            zip_file.extractall(out_dir)
        return out_dir
    with tarfile.open(archive) as tar_file:
        if hasattr(tarfile, "data_filter"):
            tar_file.extractall(out_dir, filter="data")
        else:  # Python before 3.10.12; the checksum protects the contents
            tar_file.extractall(out_dir)
    (root,) = out_dir.iterdir()
    return root


def _stage(package: MendedPackage, source: Path, stage: Path) -> Path:
    """Create a buildable project: patched sources, licence, list of changes, pyproject.toml."""
    target = stage / "src" / package.module
    if not (source / package.module).is_dir():
        raise SetupError(f"{package.source}: expected a folder {package.module} in its archive")
    shutil.copytree(source / package.module, target)
    for dotted, folder in package.extra_packages.items():
        shutil.copytree(source / folder, stage / "src" / Path(*dotted.split(".")))
    for file, text in package.added_files.items():
        (target / file).write_text(text, encoding="utf-8")
    notice = f"Changed from {package.source} by {_PROJECT}: see {BUILD_NOTE}"
    apply_edits(target, package.edits, notice)
    reasons = dict.fromkeys((edit.file, edit.why) for edit in package.edits)
    changes = "".join(f"- `{file}`: {why}\n" for file, why in reasons)
    (target / BUILD_NOTE).write_text(
        f"Built by {_PROJECT} from {package.source}, sha256 {package.sha256}.\n"
        f"Not an official build. Recipe {package.recipe}. Changed files:\n\n{changes}",
        encoding="utf-8",
    )
    shutil.copy(source / package.license_file, stage / "LICENSE")
    (stage / "pyproject.toml").write_text(_pyproject(package), encoding="utf-8")
    return stage


def _pyproject(package: MendedPackage) -> str:
    quote = json.dumps  # a JSON string is a valid TOML basic string
    return f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = {quote(package.name)}
version = {quote(package.version)}
description = {quote(package.summary)}
dependencies = {quote(list(package.requires))}
license-files = ["LICENSE"]
urls = {{ Source = {quote(package.upstream)} }}

[tool.setuptools.packages.find]
where = ["src"]
namespaces = false

[tool.setuptools.package-data]
{package.module} = {quote(["*.md", *package.data])}
"""
