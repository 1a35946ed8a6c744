"""The runner of the cases, several at a time, each in a separate process and folder."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fault_campaign_parts import PARTS
from fault_campaign_parts.bench import Bench, script
from fault_campaign_parts.children import run
from fault_campaign_parts.commands import Command, all_commands, make_archives
from fault_campaign_parts.corruptions import corruption_cases
from fault_campaign_parts.full_disk import full_disk_cases
from fault_campaign_parts.kills import Reference, kill_cases, reference
from fault_campaign_parts.kinds import all_kinds
from fault_campaign_parts.malicious import malicious_cases
from fault_campaign_parts.races import all_races, race_cases
from fault_campaign_parts.report import Case, Result

PATIENCE = 600  # seconds for one case


def make_bench(bench: Bench) -> None:
    """Make the fixtures.

    Raises:
        ValueError: one of the commands failed.
    """
    for words in bench.stages():
        outcome = run(script(*words), bench.folder / "making")
        if outcome.code:
            raise ValueError(f"{' '.join(words[:1])} failed without faults: {outcome.text[-2000:]}")
    outcome = run(partial(make_archives, bench), bench.folder / "making")
    if outcome.code:
        raise ValueError(f"the archives could not be made: {outcome.text[-2000:]}")


def all_cases(bench: Bench, parts: Sequence[str], names: Sequence[str] = ()) -> list[Case]:
    """Return the cases of some parts, in the order of the report.

    Args:
        bench: the fixtures.
        parts: a selection of ``PARTS``.
        names: cases to run; all by default.

    Raises:
        ValueError: a command fails without any fault, or a name is unknown.
    """
    subjects = {name.split("/")[1] for name in names if name.count("/")}
    commands = [c for c in all_commands(bench) if not names or c.name in subjects]
    needed = {"kills", "full-disk"} & set(parts)
    references = measure(commands, bench) if needed else {}
    makers: dict[str, Callable[[], list[Case]]] = {
        "kills": lambda: kill_cases(commands, references),
        "corruptions": lambda: corruption_cases(all_kinds(bench)),
        "races": lambda: race_cases(all_races(bench)),
        "malicious": lambda: malicious_cases(bench),
        "full-disk": lambda: full_disk_cases(commands, references),
    }
    cases = [case for part in PARTS if part in parts for case in makers[part]()]
    known = {case.name for case in cases}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"expected a case that --list shows, got {unknown[0]!r}")
    return [case for case in cases if not names or case.name in names]


def measure(commands: Sequence[Command], bench: Bench) -> dict[str, Reference]:
    """Run commands without faults, as references.

    Raises:
        ValueError: one of them fails.
    """
    found = {}
    for command in commands:
        name = command.name.replace(" ", "_").replace(",", "")
        own = reference(command, bench.folder / "references" / name)
        if own.problems:
            raise ValueError(f"{command.name} fails without faults: {own.problems[0]}")
        found[command.name] = own
    return found


def run_cases(cases: Sequence[Case], seed: int, jobs: int, folder: Path) -> list[dict[str, Any]]:
    """Run cases.

    Args:
        cases: cases to run.
        seed: random numbers of a case depend on the seed and its name.
        jobs: number of parallel processes.
        folder: parent of the cases' folders, which are removed.

    Returns:
        Part, subject, name and result of each case, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # otherwise each child copies the memory pages of all imports
    order = sorted(range(len(cases)), key=lambda number: -cases[number].cost)
    running: dict[int, tuple[int, float]] = {}
    results: dict[int, dict[str, Any]] = {}
    while order or running:
        while order and len(running) < jobs:
            number = order.pop(0)
            running[_begin(cases[number], seed, folder / str(number))] = (number, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for other, (_, began) in running.items():
                if time.monotonic() - began > PATIENCE:
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
            continue
        number, began = running.pop(pid)
        case, own = cases[number], folder / str(number)
        results[number] = {
            "part": case.part,
            "subject": case.subject,
            "case": case.name,
            "seconds": round(time.monotonic() - began, 3),
            **_read(own.with_suffix(".json"), status),
        }
        _clear(own)
        _show(len(results), len(cases), results[number])
    sys.stderr.write("\n")
    return [results[number] for number in range(len(cases))]


def _begin(case: Case, seed: int, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        folder.mkdir(parents=True)
        result = case.run(folder, Random(f"{seed}/{case.name}"))
    except BaseException:
        result = Result(problems=[f"the case itself failed: {traceback.format_exc()[-1500:]}"])
    try:
        folder.with_suffix(".json").write_text(json.dumps(vars(result)), encoding="utf-8")
    finally:
        os._exit(0)


def _read(file: Path, status: int) -> dict[str, Any]:
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    code = os.waitstatus_to_exitcode(status)
    return {"counts": {}, "problems": [f"the case's process ended with {code}"], "notes": []}


def _clear(folder: Path) -> None:
    for path in folder.parent.glob(f"{folder.name}*"):
        if path.name.partition(".")[0] == folder.name:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _show(done: int, total: int, result: dict[str, Any]) -> None:
    for problem in result["problems"]:
        sys.stderr.write(f"\rFAILED {result['case']}: {problem}\n")
    sys.stderr.write(f"\r{done} of {total} cases")
    sys.stderr.flush()
