"""A private folder for visitors' uploads, removed when the server ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX, _LOCK = "vild-page-", "lock"


@contextmanager
def private_folder(root: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Create a folder that only this user can read, and remove it at the end of the block.

    Folders of killed servers, whose locks are free, are removed first.

    Args:
        root: parent folder; by default the system's temporary folder.

    Raises:
        OSError: the folder cannot be created.
    """
    root = Path(root or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    for lock in root.glob(f"{_PREFIX}*/{_LOCK}"):
        _remove_if_stale(lock)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))  # mode 0700
    with FileLock(folder / _LOCK):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_stale(lock: Path) -> None:
    try:
        if lock.parent.lstat().st_uid != os.getuid():  # the temporary folder is shared
            return
        with FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
    except (Timeout, OSError):  # its server is running, or another one removed it
        return
