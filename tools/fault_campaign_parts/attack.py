"""An attack: a hostile file or name, and the command that is given it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKER = "CODE_RAN"
ELSEWHERE = "elsewhere"  # a folder beside the one that a command writes to


@dataclass(frozen=True)
class Attack:
    """A hostile file and the command that is given it.

    Attributes:
        name: of the case.
        subject: row of the table.
        make: writes the files; gets the folder.
        target: reads them; gets the folder.
        may_succeed: whether reading it as plain data is right, too.
        check: looks at what was written; returns what is wrong with it.
    """

    name: str
    subject: str
    make: Callable[[Path], None]
    target: Callable[[Path], int | None]
    may_succeed: bool = False
    check: Callable[[Path], str] | None = None


class Call:
    """Is a call of ``os.system`` once it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.words = f"touch {shlex.quote(str(folder / MARKER))}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (self.words,))
