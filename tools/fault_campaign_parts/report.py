"""Cases, results and the report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One experiment, repeatable by its name and the seed.

    Attributes:
        part: part of the campaign.
        subject: row of the report.
        name: unique.
        run: runs it in an empty folder.
        cost: rough duration in seconds; long cases start first.
    """

    part: str
    subject: str
    name: str
    run: Callable[[Path, Random], Result]
    cost: float = 1.0


@dataclass
class Result:
    """Outcome of a case.

    Attributes:
        counts: injected faults and their outcomes.
        problems: broken guarantees, one line each.
        notes: details for the reader of the report, such as the moment of a kill.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each part and subject."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["part"], result["subject"]), []).append(result)
    lines = ["| part | subject | cases | what happened | failures |", "|---|---|---:|---|---:|"]
    for (part, subject), own in rows.items():
        lines.append(_line(part, subject, own))
    for part in dict.fromkeys(part for part, _ in rows):
        lines.append(_line(f"**{part}**", "all", [r for r in results if r["part"] == part]))
    return "\n".join(lines)


def _line(part: str, subject: str, own: Sequence[dict[str, Any]]) -> str:
    counts: Counter[str] = Counter()
    for result in own:
        counts.update(result["counts"])
    happened = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    failures = sum(len(result["problems"]) for result in own)
    return f"| {part} | {subject} | {len(own)} | {happened} | {failures} |"
