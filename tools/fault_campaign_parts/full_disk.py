"""Full disks: small file systems in memory, and injected errors.

Mounting needs a Linux user namespace. If the kernel does not allow one, only errors are injected.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from fault_campaign_parts.artefacts import digests
from fault_campaign_parts.boundaries import Boundaries
from fault_campaign_parts.children import Child, Outcome
from fault_campaign_parts.commands import Command
from fault_campaign_parts.kills import Reference, compare, run_all
from fault_campaign_parts.report import Case, Result

PAGE = 4096
LARGE = 1 << 30  # bytes, enough for any command here
SIZES = 6  # file systems per command
ERRORS = 10  # injected errors per command
_NEWNS, _NEWUSER, _PRIVATE, _REMOUNT = 0x00020000, 0x10000000, 1 << 18 | 16384, 32


def full_disk_cases(commands: Sequence[Command], references: Mapping[str, Reference]) -> list[Case]:
    """Return the cases of this part."""
    cases = []
    real = can_mount()
    for command in commands:
        if not command.starved:
            continue
        own = references[command.name]
        add = partial(Case, "full-disk", command.name)
        cost = 2 * own.seconds
        for number in range(SIZES if real else 0):
            share = number / (SIZES - 1)
            run_it = partial(on_a_small_disk, command, own, share)
            cases.append(add(f"full-disk/{command.name}/disk-{number}", run_it, cost))
        if real:
            again = partial(over_earlier_files, command, own)
            cases.append(add(f"full-disk/{command.name}/overwriting", again, 2 * cost))
        if len(command.make(Path())) > 1:
            continue
        total = len(own.boundaries)
        most = min(ERRORS, total)
        struck = sorted({round(i * (total - 1) / max(1, most - 1)) for i in range(most)})
        for number in struck:
            run_it = partial(with_errors, command, own, number)
            cases.append(add(f"full-disk/{command.name}/error-{number}", run_it, cost))
    return cases


def can_mount() -> bool:
    """Return whether a small file system can be mounted."""
    pid = os.fork()
    if pid == 0:
        try:
            _enter_namespace()
            _mount("/tmp", PAGE)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _enter_namespace() -> None:
    """Enter a namespace whose mounts end with this process."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEWUSER | _NEWNS)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    _call("mount", None, b"/", None, ctypes.c_ulong(_PRIVATE), None)


def _mount(folder: str, size: int, again: bool = False) -> None:
    flags = ctypes.c_ulong(_REMOUNT if again else 0)
    # 0 means no limit
    options = f"size={max(size, PAGE)}".encode()
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, options)


def on_a_small_disk(
    command: Command, own: Reference, share: float, folder: Path, random: Random
) -> Result:
    """Run with a fraction of the required space, then with enough."""
    result, disk = Result(), folder / "disk"
    disk.mkdir()
    _enter_namespace()
    size = int(own.bytes * share * random.uniform(0.9, 1.0))
    _mount(str(disk), size)
    outcomes = run_all(command, disk)
    result.notes.append(f"a disk of {size:,} bytes of {own.bytes:,}")
    _note(result, own, disk, outcomes)
    _mount(str(disk), LARGE, again=True)
    _finish(result, command, own, disk)
    return result


def over_earlier_files(command: Command, own: Reference, folder: Path, random: Random) -> Result:
    """Run a second time on a full disk; the files of the first run must stay."""
    result, disk = Result(), folder / "disk"
    disk.mkdir()
    _enter_namespace()
    _mount(str(disk), LARGE)
    first = run_all(command, disk)
    if any(outcome.code for outcome in first):
        result.problems.append("it fails with room")
        return result
    stat = os.statvfs(disk)
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    _mount(str(disk), used, again=True)
    outcomes = run_all(command, disk)
    _note(result, own, disk, outcomes)
    found = digests(disk)
    lost = [name for name, value in own.artefacts.items() if found.get(name) != value]
    if lost:
        result.problems.append(f"earlier files are lost or changed: {', '.join(lost[:5])}")
    return result


def with_errors(
    command: Command, own: Reference, number: int, folder: Path, random: Random
) -> Result:
    """Run with all file changes failing from a given one on, then without errors."""
    result, disk = Result(), folder / "disk"
    disk.mkdir()
    (target,) = command.make(disk)
    outcome = Child(target, disk, Boundaries(disk, number, full_disk=True)).wait()
    if len(outcome.boundaries) > number:
        result.notes.append(f"no room at: {outcome.boundaries[number]}")
    _note(result, own, disk, [outcome])
    _finish(result, command, own, disk)
    return result


def _note(result: Result, own: Reference, disk: Path, outcomes: Sequence[Outcome]) -> None:
    result.counts["full disks"] += 1
    failed = any(outcome.code for outcome in outcomes)
    result.counts["one line and an exit code" if failed else "done all the same"] += 1
    for outcome in outcomes:
        if outcome.complaint():
            result.problems.append(f"on a full disk: {outcome.complaint()}")
        result.notes.append(outcome.last_line())
    try:
        found = digests(disk)
    except Exception as error:  # any error of a reader
        result.problems.append(f"an artefact cannot be read: {error!r:.200}")
        return
    if not failed:
        compare(result, own.artefacts, found)


def _finish(result: Result, command: Command, own: Reference, disk: Path) -> None:
    for outcome in run_all(command, disk):
        if outcome.code or outcome.complaint():
            result.problems.append(f"with room, exit code {outcome.code}: {outcome.last_line()}")
            return
    result.counts["runs with room"] += 1
    compare(result, own.artefacts, digests(disk))
