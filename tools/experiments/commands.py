"""Python commands as forked processes, which need not import torch and Detectron2 again.

These imports take 4 seconds of a core, and the quickstart runs 12 commands. Only Linux forks;
elsewhere every command is a process that imports them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from vild.data import register_made_shapes

_CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def start_command(words: Sequence[str], log: Path, threads: int, lock: int) -> int:
    """Start ``python WORDS`` in a session of its own.

    Args:
        words: a script and its arguments.
        log: file that the output is appended to.
        threads: number of threads, unless ``OMP_NUM_THREADS`` is set.
        lock: file descriptor of a lock that the command holds until it ends, even if this process
            is killed before.

    Returns:
        The process id.
    """
    log.touch()
    # a duplicate, because forked processes close the locks of their parents (vild.engine.locking)
    kept = os.dup(lock)
    ready, write = os.pipe()
    process = _CONTEXT.Process(target=_run, args=(list(words), log, threads, kept))
    process.start()
    os.close(kept)
    os.close(write)
    os.read(ready, 1)  # returns when the command has closed its end: it can be signalled now
    os.close(ready)
    assert process.pid is not None
    return process.pid


def _run(words: list[str], log: Path, threads: int, lock: int) -> None:
    # Ctrl-C reaches only the parent, which lets the command write a checkpoint
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if _CONTEXT.get_start_method() == "fork":  # nobody should wait for other inherited files
        os.closerange(3, lock)
        os.closerange(lock + 1, os.sysconf("SC_OPEN_MAX"))
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    warnings.simplefilter("ignore")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    register_made_shapes()  # an earlier command may have drawn them
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


def wait_for_command(pid: int, deadline: float) -> bool:
    """Wait for a command.

    Args:
        pid: its process id.
        deadline: when to give up, as ``time.monotonic``.

    Returns:
        Whether it has ended.
    """
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def signal_command(pid: int, number: int) -> None:
    """Send a signal to a command and its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
