"""File locks that keep two processes from writing to one folder, released on process exit."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from detectron2.utils import comm

from vild.utils.files import require_writable_folder

logger = logging.getLogger(__name__)

_TRAINING = ".training.lock"  # in OUTPUT_DIR; never removed, which would be a race
_held: set[int] = set()


@contextmanager
def exclusive(file: Path, busy: str) -> Iterator[int]:
    """Hold a lock, which the operating system releases however the process ends.

    Args:
        file: lock file; it is created and records the owner.
        busy: error message if another process holds the lock; ``{owner}`` is replaced.

    Yields:
        The file descriptor. A child process that inherits it keeps the lock while it runs.

    Raises:
        ValueError: another process holds the lock.
        OSError: the file cannot be created.
    """
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(lock)
    try:
        _take(lock, file, busy)
        yield lock
    finally:
        _held.discard(lock)
        os.close(lock)


def _take(lock: int, file: Path, busy: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 500, 0).decode("utf-8", "replace").strip() or "it is not known which"
        raise ValueError(busy.format(owner=owner)) from None
    except OSError as error:
        logger.warning(
            "the file system of %s has no locks (%s): make sure that no other process writes there",
            file.parent,
            error.strerror,
        )
        return
    owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n"
    with suppress(OSError):  # a full disk; the lock is held anyway
        os.ftruncate(lock, 0)
        os.pwrite(lock, owner.encode(), 0)


def _forget() -> None:
    """Close the parent's locks in a forked child, which may outlive the parent for seconds."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextmanager
def only_training(folder: str) -> Iterator[None]:
    """Allow only one training in ``OUTPUT_DIR``; call this in all processes of the job.

    Evaluations are allowed, because they only read checkpoints.

    Args:
        folder: ``OUTPUT_DIR``, created if missing. The main process holds the lock.

    Raises:
        ValueError: in every process, if another training runs there or the folder is not writable.
    """
    with ExitStack() as stack:
        problem = ""
        if comm.is_main_process():
            try:
                require_writable_folder(folder, "OUTPUT_DIR")
                busy = (
                    f"another training is running in {folder} ({{owner}}): wait for its end, or "
                    "choose another OUTPUT_DIR"
                )
                stack.enter_context(exclusive(Path(folder, _TRAINING), busy))
            except (ValueError, OSError) as error:
                problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise ValueError(problem)
        yield
