"""Locks: only one process writes a folder, and a killed process releases its lock."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from vild.engine.locking import exclusive, only_training


def test_a_second_training_is_told_who_is_there(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with only_training(folder):
        owner = f"process {os.getpid()} on {re.escape(socket.gethostname())} since 20"
        with (
            pytest.raises(ValueError, match=rf"another training is running in .*run \({owner}"),
            only_training(folder),
        ):
            pass
    with only_training(folder):
        pass


def hold(lock: Path, said: int) -> None:
    """Hold a lock forever, next to a forked worker, and report the worker's process id."""
    with exclusive(lock, "busy"):
        worker = os.fork()
        if worker:
            os.write(said, f"{worker}\n".encode())
        signal.pause()


def test_a_killed_holder_keeps_nobody_out(tmp_path: Path) -> None:
    """The same holds for a worker that outlives it."""
    lock, (read, said) = tmp_path / "lock", os.pipe()
    holder = os.fork()
    if not holder:
        hold(lock, said)
    worker = int(os.read(read, 100))
    try:
        with (
            pytest.raises(ValueError, match=f"busy: process {holder} on"),
            exclusive(lock, "busy: {owner}"),
        ):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(worker, 0)  # still exists
        with exclusive(lock, "busy: {owner}"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(said)


def test_a_file_system_without_locks_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_training(str(tmp_path)):
        assert "has no locks (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"expected OUTPUT_DIR to be a folder that can be written"),
        only_training("/proc/nowhere"),
    ):
        pass
