"""Exact, checked replacements in the sources of a third-party package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from installer.errors import SetupError


@dataclass(frozen=True)
class Edit:
    """One replacement in one file.

    Attributes:
        file: path of the file inside the package, with forward slashes.
        old: text that must occur in the file exactly ``count`` times.
        new: replacement text.
        why: the reason, one line, for the built package's list of changes.
        count: expected number of occurrences of ``old``.
    """

    file: str
    old: str
    new: str
    why: str
    count: int = 1


def apply_edits(package_dir: Path, edits: tuple[Edit, ...], notice: str) -> list[str]:
    """Apply ``edits`` below ``package_dir`` and sign every changed file with ``notice``.

    All edits are checked before the first file is written, so a mismatch changes nothing.

    Returns:
        The changed files, relative to ``package_dir``, in order of first appearance.

    Raises:
        SetupError: a file is missing, or a text does not occur as often as expected.
    """
    texts: dict[str, str] = {}
    for edit in edits:
        path = package_dir / edit.file
        if edit.file not in texts:
            if not path.is_file():
                raise SetupError(
                    f"expected the file {edit.file} in {package_dir.name}, but it is missing. "
                    "The source is not the version that these edits were made for."
                )
            texts[edit.file] = path.read_text(encoding="utf-8")
        found = texts[edit.file].count(edit.old)
        if found != edit.count:
            raise SetupError(
                f"expected this text {edit.count} time(s) in {package_dir.name}/{edit.file}, "
                f"found it {found} time(s):\n{edit.old}\n"
                "The source is not the version that these edits were made for."
            )
        texts[edit.file] = texts[edit.file].replace(edit.old, edit.new)
    for file, text in texts.items():
        (package_dir / file).write_text(f"{text.rstrip()}\n# {notice}\n", encoding="utf-8")
    return list(texts)
