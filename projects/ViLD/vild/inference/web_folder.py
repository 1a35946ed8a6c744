"""A private folder for what visitors upload, removed with the server that it belongs to."""

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
    """Make a folder that only this user can read, and remove it at the end of the block.

    Folders of servers that were killed are removed first: their lock is held by nobody.

    Args:
        root: where to make it; by default the system's folder of temporary files.

    Raises:
        OSError: the folder cannot be made.
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
        if lock.parent.lstat().st_uid != os.getuid():  # the folder of temporary files is shared
            return
        with FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
    except (Timeout, OSError):  # of a running server, or removed by another one
        return
