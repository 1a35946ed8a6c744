"""SIGKILL at random moments and at every write boundary; then the command again, to the end."""

from __future__ import annotations

import shutil
from collections import Counter
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

MOST_KILLS = 3  # of one command before it may end
_WAIT = "another run is at work there"  # a stage that outlives its runner; it ends by itself


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        seconds: how long it took.
        boundaries: of its first process.
        artefacts: digests.
        bytes: size of all files.
        problems: empty if it went well.
    """

    seconds: float
    boundaries: tuple[str, ...]
    artefacts: dict[str, str]
    bytes: int
    problems: tuple[str, ...] = ()


def reference(command: Command, folder: Path) -> Reference:
    """Run a command undisturbed; twice where it is quick to find what differs by itself."""
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
    """Run all processes of a command to their ends; again, where another one is still at work."""
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
    """All of this part."""
    cases = []
    for command in commands:
        own = references[command.name]
        add = partial(Case, "kills", command.name)
        for number in range(command.kills):
            run = partial(kill_at_random, command, own)
            cases.append(add(f"kills/{command.name}/random-{number}", run, 3 * own.seconds))
        if len(command.make(Path())) > 1:
            continue
        for boundary in range(len(own.boundaries)):
            run = partial(kill_at_boundary, command, own, boundary)
            cases.append(add(f"kills/{command.name}/boundary-{boundary}", run, 2 * own.seconds))
    return cases


def kill_at_random(command: Command, own: Reference, folder: Path, random: Random) -> Result:
    """Kill after random times, some times over, then let it end."""
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
    """Kill right before a certain change of a file, then let it end."""
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
    """What a kill left: no file under its final name may be half."""
    for outcome in outcomes:
        result.counts["kills" if outcome.was_killed else "too late to kill"] += 1
        # the one beside it may find what it needs missing, but must say so in one line
        if not outcome.was_killed and _WAIT not in outcome.text and outcome.complaint():
            result.problems.append(f"a process beside a killed one: {outcome.complaint()}")
        result.notes.append(f"ended by {outcome.code} after {outcome.seconds:.3f} s")
    try:
        found = digests(folder)
    except Exception as error:  # a file that its own format's reader cannot read, or any other
        result.problems.append(f"after the kill an artefact cannot be read: {error!r:.200}")
        return
    for name, value in found.items():
        expected = own.artefacts.get(name)
        moving = any(fnmatch(name, pattern) for pattern in command.changing)
        if value != expected and not moving:
            what = "is not what it becomes" if expected else "is no artefact of a whole run"
            result.problems.append(f"after the kill, {name} {what}")


def _finish(result: Result, command: Command, own: Reference, folder: Path) -> None:
    """Run to the end and compare."""
    for outcome in run_all(command, folder):
        if outcome.code or outcome.complaint():
            last = outcome.text.strip().splitlines()[-1:] or [""]
            result.problems.append(f"the next run: exit code {outcome.code}: {last[0][:300]}")
    if not result.problems:
        compare(result, own.artefacts, digests(folder))
    result.counts["runs to the end"] += 1
    left = leftovers(folder)
    if left:
        result.counts["with temporary files left"] += 1
        result.notes.append(f"left: {', '.join(left[:5])}")


def compare(result: Result, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Note artefacts that differ from an undisturbed run's."""
    names = sorted(expected.keys() | found.keys())
    differ = [name for name in names if expected.get(name) != found.get(name)]
    if differ:
        result.problems.append(f"differs from an undisturbed run: {', '.join(differ[:5])}")
    else:
        result.counts["identical"] += 1


def merged(results: list[Result]) -> Counter[str]:
    """The counts of several results."""
    return sum((result.counts for result in results), Counter())
