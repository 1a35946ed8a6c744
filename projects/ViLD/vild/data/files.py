"""Files: a kill at any moment of writing leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes it when the block ends without an error.

    The file is flushed to disk before it is renamed; after an error it is removed.

    Args:
        target: file to write; its folder is made.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the ending, which some writers look at. Random, since the processes of several machines
    # may share the folder.
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the folder itself: a rename is lost in a power cut before that."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_npy(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """The array of an ``.npy`` file, never a pickle.

    Args:
        path: the file.
        what: it is expected to be, for the error.

    Raises:
        ValueError: no such file, or another one.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"expected {what} in .npy format at {path}: {error}") from None


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files that killed processes left of ``target``.

    Only for a caller that knows that nobody writes it now.
    """
    for leftover in target.parent.glob(f".{target.stem}.*{target.suffix}"):
        leftover.unlink(missing_ok=True)
