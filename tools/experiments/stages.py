"""A runner for experiments of several commands, which runs each once, in order of dependency.

A stage is a command with its output files. A finished stage leaves a record and is skipped the next
time, unless its command, a configuration that the command names, its version or a stage that it
depends on has changed. An interrupted stage is restarted with its files in place, because the
commands of this project resume; after any other change, its files are removed first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from experiments.commands import signal_command, start_command, wait_for_command
from experiments.progress import StageBar
from vild.engine.locking import exclusive
from vild.utils.files import atomic_path

_POLL = 0.2  # seconds between polls of the running commands
_PATIENCE = 60  # seconds for a stopped command to write its checkpoint
_GRACE = 5  # seconds for a killed command to exit


class StageFailed(RuntimeError):
    """Raised when a command ends with a nonzero exit code."""


@dataclass(frozen=True)
class Stage:
    """One command of an experiment.

    Attributes:
        name: unique; also the name of its record and its log.
        title: description for the user.
        command: arguments of Python; the first is a script.
        outputs: files and folders that it creates and that no other stage writes.
        after: names of the stages whose outputs it reads.
        seconds: estimated duration, for the remaining time.
        keep: whether the command itself handles outdated outputs.
        version: version of what it reads from the package, such as weights.
    """

    name: str
    title: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    after: tuple[str, ...] = ()
    seconds: float = 10.0
    keep: bool = False
    version: str = ""

    @property
    def shown(self) -> str:
        """The command as a user would type it."""
        return shlex.join(("python", *self.command))


@dataclass(frozen=True)
class Record:
    """The record of a finished stage.

    Attributes:
        identity: command, its configurations, its version, and the runs of the stages that it
            depends on.
        run: unique id of the run.
        seconds: wall time of all attempts.
        peak_bytes: peak resident memory of its largest process.
        title: title of the stage.
        number: index of the stage, from 0.
        cpu_seconds: CPU time of the attempt that finished.
    """

    identity: dict[str, Any]
    run: str
    seconds: float
    peak_bytes: int
    title: str
    number: int
    cpu_seconds: float = 0.0

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        return shlex.join(("python", *self.identity["command"]))


@dataclass
class _Running:
    stage: Stage
    pid: int
    log: Path
    identity: dict[str, Any]
    began: float = field(default_factory=time.monotonic)


class StageRunner:
    """A runner of stages, several at a time.

    Args:
        stages: in order of dependency.
        folder: folder of records and logs, created if missing. A second runner in it is refused.
        jobs: commands to run at a time; they share the cores.

    Raises:
        ValueError: a name occurs twice, or a stage precedes one that it depends on.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        folder: str | os.PathLike[str],
        jobs: int = 1,
    ) -> None:
        seen: set[str] = set()
        for stage in stages:
            missing = [name for name in stage.after if name not in seen]
            if stage.name in seen or missing:
                raise ValueError(
                    f"expected stages with unique names, each after those that it depends on, got "
                    f"{stage.name!r} " + (f"before {missing}" if missing else "twice")
                )
            seen.add(stage.name)
        if jobs < 1:
            raise ValueError(f"expected at least 1 command at a time, got {jobs}")
        self.stages, self.folder, self.jobs = tuple(stages), Path(folder), jobs
        self._records: dict[str, Record] = {}
        self._running: list[_Running] = []
        self._stopped_by, self._lock = 0, -1

    @property
    def records(self) -> Mapping[str, Record]:
        """Return the records of the finished stages, by name."""
        return self._records

    def run(self) -> bool:
        """Run the unfinished stages.

        Returns:
            Whether there was anything to do.

        Raises:
            StageFailed: a command failed; the message has the end of its log.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the commands have stopped.
            ValueError: another process runs stages in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = (
            f"{self.folder}: another run is in progress, or a command of a killed run "
            "({owner}): wait for it, or stop it"
        )
        with exclusive(self.folder / ".lock", busy) as self._lock:
            return self._run()

    def _run(self) -> bool:
        # in order, so that a stage sees whether its dependencies will run again
        self._records = {}
        for stage in self.stages:
            record = self._read(stage)
            if record is not None:
                self._records[stage.name] = record
        todo = [stage for stage in self.stages if stage.name not in self._records]
        if not todo:
            return False
        done = sum(stage.seconds for stage in self.stages if stage.name in self._records)
        total = sum(stage.seconds for stage in self.stages)
        bar = StageBar(total, done)
        with _on_stop_signals(self._stop_soon), closing(bar):
            if len(todo) < len(self.stages):
                bar.print(
                    f"{len(self.stages) - len(todo)} of {len(self.stages)} stages are up to date"
                )
            try:
                while todo or self._running:
                    self._start_ready(todo, bar)
                    time.sleep(_POLL)
                    self._show(bar)
                    self._collect(bar)
                    if self._stopped_by:
                        raise KeyboardInterrupt
            finally:
                self._stop()
        return True

    def _show(self, bar: StageBar) -> None:
        now = time.monotonic()
        bar.show(
            [(now - each.began, each.stage.seconds) for each in self._running],
            _last_line(self._running[-1].log) if self._running else "",
        )

    def _start_ready(self, todo: list[Stage], bar: StageBar) -> None:
        for stage in list(todo):
            if len(self._running) == self.jobs:
                return
            if all(name in self._records for name in stage.after):
                todo.remove(stage)
                self._running.append(self._start(stage))
                number = self.stages.index(stage) + 1
                bar.print(f"[{number}/{len(self.stages)}] {stage.title}\n    {stage.shown}")

    def _start(self, stage: Stage) -> _Running:
        identity = self._identity(stage)
        begun = self._file(stage, "begun")
        if _read_json(begun) != identity:
            for output in () if stage.keep else stage.outputs:
                _remove(output)
            self._file(stage, "log").unlink(missing_ok=True)
            with atomic_path(begun) as temporary:
                temporary.write_text(json.dumps(identity), encoding="utf-8")
        log = self._file(stage, "log")
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        pid = start_command(stage.command, log, threads, self._lock)
        return _Running(stage, pid, log, identity)

    def _collect(self, bar: StageBar) -> None:
        for running in list(self._running):
            pid, status, usage = os.wait4(running.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._running.remove(running)
            stage, took = running.stage, time.monotonic() - running.began
            missing = [str(path) for path in stage.outputs if not path.exists()]
            if code or missing:
                reason = f"exit code {code}" if code else f"it did not write {', '.join(missing)}"
                raise StageFailed(
                    f"{stage.title} failed: {reason}. The end of {running.log}:\n\n"
                    f"{_tail(running.log)}\n\nThe command was\n    {stage.shown}"
                )
            # Linux counts in KiB, macOS in bytes
            unit = 1 if sys.platform == "darwin" else 1024
            record = Record(
                running.identity,
                uuid.uuid4().hex,
                self._spent(running),
                usage.ru_maxrss * unit,
                stage.title,
                self.stages.index(stage),
                usage.ru_utime + usage.ru_stime,
            )
            with atomic_path(self._file(stage, "json")) as temporary:
                temporary.write_text(json.dumps(vars(record), indent=1), encoding="utf-8")
            self._file(stage, "spent").unlink(missing_ok=True)
            self._records[stage.name] = record
            bar.finished(stage.title, stage.seconds, took)

    def _stop(self) -> None:
        """Stop the running commands and keep their outputs."""
        for running in self._running:
            signal_command(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        for running in self._running:
            ended = wait_for_command(running.pid, deadline)
            signal_command(running.pid, signal.SIGKILL)  # also its child processes
            if not ended:
                wait_for_command(running.pid, time.monotonic() + _GRACE)
            self._file(running.stage, "spent").write_text(json.dumps(self._spent(running)))
        self._running = []

    def _spent(self, running: _Running) -> float:
        """Return the seconds of this and all earlier attempts."""
        before = float(_read_json(self._file(running.stage, "spent")) or 0.0)
        return before + time.monotonic() - running.began

    def _stop_soon(self, number: int) -> None:
        self._stopped_by = number

    def _identity(self, stage: Stage) -> dict[str, Any]:
        needed = {name: self._records[name].run for name in stage.after}
        digest = hashlib.sha256()
        for word in stage.command:
            if word.endswith(".yaml") and Path(word).is_file():
                for file in _with_bases(Path(word)):
                    digest.update(file.read_bytes())
        return {
            "command": list(stage.command),
            "configurations": digest.hexdigest(),
            "version": stage.version,
            "after": needed,
        }

    def _read(self, stage: Stage) -> Record | None:
        """Read the record of a stage; None unless it is finished and up to date."""
        found = _read_json(self._file(stage, "json"))
        if not isinstance(found, dict) or any(name not in self._records for name in stage.after):
            return None
        try:
            record = Record(**found)
        except TypeError:  # written by another version
            return None
        if record.identity != self._identity(stage):
            return None
        return record if all(path.exists() for path in stage.outputs) else None

    def _file(self, stage: Stage, kind: str) -> Path:
        return self.folder / f"{stage.name}.{kind}"


@contextmanager
def _on_stop_signals(callback: Callable[[int], None]) -> Iterator[None]:
    """Call ``callback`` on SIGINT and SIGTERM, so that a run stops cleanly between two polls."""

    def handler(number: int, frame: FrameType | None) -> None:
        callback(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def run_or_exit(runner: StageRunner, again: str = "the same command") -> bool:
    """Run stages and turn errors and interruptions into messages and exit codes.

    Args:
        runner: runner of the stages.
        again: how to resume after an interruption, for the message.

    Returns:
        The value of :meth:`StageRunner.run`.

    Raises:
        SystemExit: after a message, with 130 for Ctrl-C or SIGTERM and 1 for an error.
    """
    try:
        return runner.run()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped; run {again} again to resume\n")
        sys.exit(130)
    except (StageFailed, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def read_records(folder: str | os.PathLike[str]) -> list[Record]:
    """Read the records of finished stages from a runner's folder, in their order.

    Raises:
        ValueError: there is no record, or one is damaged or of another version.
    """
    found = []
    for file in Path(folder).glob("*.json"):
        try:
            found.append(Record(**_read_json(file)))
        except TypeError:
            raise ValueError(
                f"{file} is not the record of a stage, or of another version"
            ) from None
    if not found:
        raise ValueError(f"expected records of finished stages in {folder}, found none")
    return sorted(found, key=lambda record: record.number)


def _with_bases(config: Path) -> Iterator[Path]:
    """Yield a configuration file and its ``_BASE_`` files."""
    yield config
    bases = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("_BASE_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _with_bases(config.parent / base)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _end_of(path: Path, size: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", "replace").replace("\r", "\n")


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join([line for line in _end_of(path, 20_000).split("\n") if line.strip()][-lines:])


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in _end_of(path, 2000).split("\n") if line.strip()]
    return lines[-1][:100] if lines else ""
