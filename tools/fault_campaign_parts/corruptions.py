"""Damaged files of every kind: the damage must be detected or harmless."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from random import Random

from fault_campaign_parts.children import Outcome, guarded, limited, run
from fault_campaign_parts.kinds import OWN, Kind
from fault_campaign_parts.mutations import damage
from fault_campaign_parts.report import Case, Result

BATCH = 10  # damaged copies per case
MEMORY = 4 << 30  # bytes that a reader may allocate, whatever a damaged length says


def corruption_cases(kinds: list[Kind]) -> list[Case]:
    """Return the cases of this part."""
    return [
        Case(
            "corruptions",
            kind.name if kind.group == OWN else f"{kind.name} ({kind.group})",
            f"corruptions/{kind.name}/{batch}",
            partial(damage_copies, kind, min(BATCH, kind.count - batch * BATCH)),
        )
        for kind in kinds
        for batch in range(-(-kind.count // BATCH))
    ]


def damage_copies(kind: Kind, count: int, folder: Path, random: Random) -> Result:
    """Damage copies of a file and read each one."""
    result, good = Result(), folder / "good"
    good.mkdir()
    outcome = run(lambda: kind.make(good) and None, folder)
    shutil.copytree(good, folder / "first")  # a reader may write
    expected, first = read(kind, folder / "first", folder / "read")
    if outcome.code or not expected:
        result.problems.append(f"the undamaged file cannot be read: {(first or outcome).text}")
        return result
    for number in range(count):
        own = folder / str(number)
        shutil.copytree(good, own)
        files = sorted(file for file in own.glob(kind.files) if file.is_file())
        file = random.choice(files)
        stat = file.stat()
        content, how = damage(file.read_bytes(), random)
        file.write_bytes(content)
        if kind.keep_times:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        found, outcome = read(kind, own, folder / f"read{number}")
        what = f"{number}: {file.name}: {how}"
        verdict = judge(kind, expected, found, outcome)
        result.counts["damaged"] += 1
        result.counts[verdict] += 1
        result.notes.append(f"{what}: {verdict} {outcome.last_line() if outcome.code else ''}")
        if verdict not in ("found", "harmless", "read as other data"):
            result.problems.append(f"{what}: {verdict}")
        shutil.rmtree(own)
    return result


def judge(kind: Kind, expected: str, found: str, outcome: Outcome) -> str:
    """Classify the outcome of reading a damaged file."""
    if complaint := outcome.complaint():
        return complaint
    if outcome.code:
        return "found"
    if found == expected:
        return "harmless"
    return "SILENT: other data were read" if kind.group == OWN else "read as other data"


def read(kind: Kind, folder: Path, note: Path) -> tuple[str, Outcome]:
    """Read files in a child; return the digest, or "" if they are refused."""

    def target() -> None:
        note.write_text(kind.read(folder), encoding="utf-8")

    outcome = run(guarded(limited(target, MEMORY)), note)
    return (note.read_text(encoding="utf-8") if note.exists() else ""), outcome
