"""Writing files so that a kill at any moment leaves the old one or the new one, never half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes it when the block ends without an error.

    The file is flushed to disk before it is renamed; after an error it is removed.

    Args:
        target: file to write; its folder is made.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # keeps the ending, which some writers look at
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
