"""Faults at a chosen change of a file: a SIGKILL, or a full disk.

Python's audit hooks report files being opened, renamed and removed, and new folders; a wrapper of
``os.fsync`` reports flushes. The project's code is not changed.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


class Boundaries:
    """A counter of the file changes of a child below a folder, which injects a fault at one.

    Args:
        scope: the folder.
        strike_at: index of the change before which the fault is injected, from 0; None: no fault.
        full_disk: instead of a SIGKILL, let this change and all later ones fail with a full disk.
            Removals succeed, as on a full disk.
    """

    def __init__(self, scope: Path, strike_at: int | None = None, full_disk: bool = False) -> None:
        self.scope, self.strike_at, self.full_disk = str(scope.resolve()), strike_at, full_disk
        self._count = 0

    def watch(self, record: Path) -> None:
        """Start counting, in the child; each change is appended to the file ``record``."""
        self._owner = os.getpid()
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._inside = False
        sys.addaudithook(self._hook)
        flush = os.fsync
        os.fsync = self._wrapped(flush)

    def _wrapped(self, flush: Callable[[Any], None]) -> Callable[[Any], None]:
        def fsync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            self._passing("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            flush(file)

        return fsync

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if mode else bool((flags or 0) & _WRITING)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._passing("open", os.fsdecode(path))
        elif event in _CHANGES:
            path = arguments[1] if event == "os.rename" else arguments[0]
            if isinstance(path, int):
                path = f"/proc/self/fd/{path}"
            path = os.fsdecode(path)
            folder = arguments[-1]
            if not os.path.isabs(path) and isinstance(folder, int) and folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            self._passing(event.removeprefix("os."), path)

    def _passing(self, kind: str, path: str) -> None:
        # ignore writes of this hook and of helper processes
        if self._inside or os.getpid() != self._owner:
            return
        path = os.path.abspath(path)
        if not path.startswith(self.scope):
            return
        self._inside = True
        try:
            number, self._count = self._count, self._count + 1
            os.write(self._record, f"{kind} {path[len(self.scope) + 1 :]}\n".encode())
        finally:
            self._inside = False
        if self.strike_at is None or number < self.strike_at:
            return
        if not self.full_disk:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind not in ("remove", "rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
