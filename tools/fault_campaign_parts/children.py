"""Forked children that run commands and can be killed or made to fail at a chosen moment.

Importing torch takes seconds, so the campaign imports everything once and forks; a child then
starts in some 0.03 s. The parent must not start threads or compute with tensors.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fault_campaign_parts.boundaries import Boundaries

Target = Callable[[], int | None]
TIMEOUT = 180.0  # seconds; commands of the campaign take at most 10
_numbers = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: exit code; negative for a signal, as in ``subprocess``.
        text: standard output and standard error.
        seconds: how long it ran.
        timed_out: whether it was killed after the time limit.
        boundaries: its file changes, in order; see :class:`Boundaries`.
    """

    code: int
    text: str
    seconds: float
    timed_out: bool = False
    boundaries: tuple[str, ...] = ()

    @property
    def was_killed(self) -> bool:
        """Return whether SIGKILL ended it (and not the time limit)."""
        return self.code == -signal.SIGKILL and not self.timed_out

    def last_line(self) -> str:
        """Return the start of the last line of output, which contains the error."""
        return (self.text.strip().splitlines() or [""])[-1][:300]

    def complaint(self) -> str:
        """Return a problem with the way a failure was reported, or "".

        An error must be the last line, without a traceback; log lines may precede it.
        """
        lines = [line for line in self.text.splitlines() if line.strip()]
        last = self.last_line()
        if self.timed_out:
            return f"it did not end within {TIMEOUT:.0f} s"
        if self.code < 0:
            return f"it ended by signal {-self.code}: {last}"
        if any(line.startswith("Traceback (most recent call last)") for line in lines):
            return f"a traceback: {last}"
        if self.code:
            errors = [n for n, line in enumerate(lines) if "error:" in line or "failed:" in line]
            if not errors:
                return f"exit code {self.code} without a line that says error: {last!r}"
            if errors[-1] < len(lines) - 1:
                return f"an error of {len(lines) - errors[-1]} lines: {lines[errors[-1]][:200]}"
        return ""


class Gate:
    """A barrier that releases waiting children at the same moment."""

    def __init__(self) -> None:
        self._ready, self._here = os.pipe()
        self._wait, self._open = os.pipe()

    def pass_through(self) -> None:
        """Wait in a child until the gate opens."""
        os.close(self._open)
        os.write(self._here, b".")
        os.read(self._wait, 1)  # ends when the parent closes the other end

    def release(self, children: int) -> None:
        """Wait in the parent until this many children have arrived, then open the gate."""
        for _ in range(children):
            os.read(self._ready, 1)
        for descriptor in (self._open, self._wait, self._ready, self._here):
            os.close(descriptor)


class Child:
    """A running child.

    Args:
        target: function to run; returns an exit code, or raises like a script.
        folder: its output goes to a file next to this folder until it ends.
        boundaries: records its file changes, and may inject a fault.
        gate: barrier to wait at before starting.
    """

    def __init__(
        self,
        target: Target,
        folder: Path,
        boundaries: Boundaries | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._log = folder.with_name(f"{folder.name}.log-{os.getpid()}-{next(_numbers)}")
        self._passed = self._log.with_name(f"{self._log.name}.boundaries")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self._began = time.monotonic()
        if self.pid == 0:
            os.setpgid(0, 0)
            self._become(target, boundaries, gate)
        with contextlib.suppress(OSError):  # the child does the same; either may be first
            os.setpgid(self.pid, self.pid)
        self._descriptor = os.pidfd_open(self.pid)

    def _become(self, target: Target, boundaries: Boundaries | None, gate: Gate | None) -> None:
        code = 1
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = os.fdopen(1, "w", 1, "utf-8", closefd=False)
            sys.stderr = os.fdopen(2, "w", 1, "utf-8", closefd=False)
            if gate is not None:
                gate.pass_through()
            if boundaries is not None:
                boundaries.watch(self._passed)
            code = target() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def ended(self, seconds: float) -> bool:
        """Wait at most this many seconds and return whether it has ended."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def kill(self) -> None:
        """Send SIGKILL to its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, kill_after: float | None = None) -> Outcome:
        """Wait for its end, or kill it after this many seconds."""
        timed_out = False
        if kill_after is not None:
            if not self.ended(kill_after):
                self.kill()
        elif not self.ended(TIMEOUT):
            timed_out = True
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        took = time.monotonic() - self._began
        self.kill()  # remaining helper processes
        os.close(self._descriptor)
        passed = self._passed.read_text().splitlines() if self._passed.exists() else []
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        for file in (self._log, self._passed):
            file.unlink(missing_ok=True)
        return Outcome(os.waitstatus_to_exitcode(status), text, took, timed_out, tuple(passed))


def limited(target: Target, memory: int) -> Target:
    """Return a target that may allocate this many bytes."""

    def limit() -> int | None:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return target()

    return limit


def guarded(target: Target) -> Target:
    """Return a target that reports ValueError and OSError as the commands do."""

    def guard() -> int:
        try:
            return target() or 0
        except (ValueError, OSError) as error:
            print(f"error: {error}", flush=True)
            return 2

    return guard


def run(target: Target, folder: Path, boundaries: Boundaries | None = None) -> Outcome:
    """Run a target to its end."""
    return Child(target, folder, boundaries).wait()
