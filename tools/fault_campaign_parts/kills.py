"""SIGKILL at random moments and before every file change, then a run to the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, sleep

from fault_campaign_parts.artefacts import digests, leftovers
from fault_campaign_parts.boundaries import Boundaries
from fault_campaign_parts.children import Child, Outcome
from fault_campaign_parts.commands import Command
from fault_campaign_parts.report import Case, Result

MOST_KILLS = 3  # per command, before it may finish
_WAIT = "another run is in progress"  # a stage outlives its killed runner


@dataclass(frozen=True)
class Reference:
    """Result of a run without faults.

    Attributes:
        seconds: duration.
        boundaries: file changes of its first process.
        artefacts: digests of its files.
        bytes: total size of its files.
        problems: empty on success.
    """

    seconds: float
    boundaries: tuple[str, ...]
    artefacts: dict[str, str]
    bytes: int
    problems: tuple[str, ...] = ()


def reference(command: Command, folder: Path) -> Reference:
    """Run a command without faults."""
    folder.mkdir(parents=True)
    outcomes = run_all(command, folder, watched=True)
    problems = [outcome.text[-800:] for outcome in outcomes if outcome.code]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    found = Reference(
        max(outcome.seconds for outcome in outcomes),
        outcomes[0].boundaries,
        digests(folder),
        size,
        tuple(problems),
    )
    shutil.rmtree(folder)
    return found


def run_all(command: Command, folder: Path, watched: bool = False) -> list[Outcome]:
    """Run all processes of a command to their ends; retry while a stage outlives its runner."""
    begin = monotonic()
    while True:
        children = [
            Child(target, folder, Boundaries(folder) if watched else None)
            for target in command.make(folder)
        ]
        outcomes = [child.wait() for child in children]
        waits = any(_WAIT in outcome.text for outcome in outcomes)
        if not waits or monotonic() - begin > 30:
            return outcomes
        sleep(0.1)


def kill_cases(commands: list[Command], references: Mapping[str, Reference]) -> list[Case]:
    """Return the cases of this part."""
    cases = []
    for command in commands:
        own = references[command.name]
        add = partial(Case, "kills", command.name)
        for number in range(command.kills):
            run = partial(kill_at_random, command, own)
            cases.append(add(f"kills/{command.name}/random-{number}", run, 3 * own.seconds))
        if len(command.make(Path())) > 1:
            continue
        for boundary, change in enumerate(own.boundaries):
            if "events.out.tfevents" in change:  # TensorBoard reopens it for every line
                continue
            run = partial(kill_at_boundary, command, own, boundary)
            cases.append(add(f"kills/{command.name}/boundary-{boundary}", run, 2 * own.seconds))
    return cases


def kill_at_random(command: Command, own: Reference, folder: Path, random: Random) -> Result:
    """Kill one to three times at random moments, then run to the end."""
    result = Result()
    for _ in range(random.randint(1, MOST_KILLS)):
        children = [Child(target, folder) for target in command.make(folder)]
        delays = [random.uniform(0, own.seconds) for _ in children]
        began = monotonic()
        pairs = sorted(zip(delays, children, strict=True), key=lambda pair: pair[0])
        outcomes = [child.wait(delay - (monotonic() - began)) for delay, child in pairs]
        _note(result, command, own, folder, outcomes)
    _finish(result, command, own, folder)
    return result


def kill_at_boundary(
    command: Command, own: Reference, number: int, folder: Path, random: Random
) -> Result:
    """Kill right before one file change, then run to the end."""
    result = Result()
    (target,) = command.make(folder)
    outcome = Child(target, folder, Boundaries(folder, number)).wait()
    _note(result, command, own, folder, [outcome])
    if outcome.was_killed:
        result.notes.append(f"killed before: {outcome.boundaries[-1]}")
    _finish(result, command, own, folder)
    return result


def _note(
    result: Result, command: Command, own: Reference, folder: Path, outcomes: list[Outcome]
) -> None:
    """Record a kill; no file with a final name may be incomplete."""
    for outcome in outcomes:
        result.counts["kills" if outcome.was_killed else "too late to kill"] += 1
        # other processes of the command may fail, with a one-line error
        if not outcome.was_killed and _WAIT not in outcome.text and outcome.complaint():
            result.problems.append(f"a process next to a killed one: {outcome.complaint()}")
        result.notes.append(f"ended by {outcome.code} after {outcome.seconds:.3f} s")
    try:
        found = digests(folder)
    except Exception as error:  # any error of a reader
        result.problems.append(f"after the kill an artefact cannot be read: {error!r:.200}")
        return
    for name, value in found.items():
        expected = own.artefacts.get(name)
        moving = any(fnmatch(name, pattern) for pattern in command.changing)
        if value != expected and not moving:
            what = "is incomplete" if expected else "is not an artefact of a normal run"
            result.problems.append(f"after the kill, {name} {what}")


def _finish(result: Result, command: Command, own: Reference, folder: Path) -> None:
    """Run to the end and compare with the reference."""
    for outcome in run_all(command, folder):
        if outcome.code or outcome.complaint():
            result.problems.append(f"the next run: exit code {outcome.code}: {outcome.last_line()}")
    if not result.problems:
        compare(result, own.artefacts, digests(folder))
    result.counts["runs to the end"] += 1
    left = leftovers(folder)
    if left:
        result.counts["with temporary files left"] += 1
        result.notes.append(f"left: {', '.join(left[:5])}")


def compare(result: Result, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Record artefacts that differ from the reference."""
    names = sorted(expected.keys() | found.keys())
    differ = [name for name in names if expected.get(name) != found.get(name)]
    if differ:
        result.problems.append(f"differs from a normal run: {', '.join(differ[:5])}")
    else:
        result.counts["identical"] += 1
