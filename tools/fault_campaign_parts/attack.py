"""Hostile files and names, and the commands that read them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKER = "CODE_RAN"
ELSEWHERE = "elsewhere"  # a folder outside the command's output folder


@dataclass(frozen=True)
class Attack:
    """A hostile file and the command that reads it.

    Attributes:
        name: name of the case.
        subject: row of the table.
        make: writes the files into the given folder.
        target: reads them from the given folder.
        may_succeed: whether reading it as plain data is allowed.
        check: returns a problem with the output, or "".
    """

    name: str
    subject: str
    make: Callable[[Path], None]
    target: Callable[[Path], int | None]
    may_succeed: bool = False
    check: Callable[[Path], str] | None = None


class Call:
    """An object that is pickled as a call of ``os.system``."""

    def __init__(self, folder: Path) -> None:
        self.words = f"touch {shlex.quote(str(folder / MARKER))}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (self.words,))
