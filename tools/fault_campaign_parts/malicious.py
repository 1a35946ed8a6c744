"""Hostile files and names: no code may run, and nothing may be written outside the output."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

from fault_campaign_parts.attack import ELSEWHERE, MARKER, Attack
from fault_campaign_parts.bench import Bench
from fault_campaign_parts.children import guarded, limited, run
from fault_campaign_parts.hostile_archives import archives, bombs
from fault_campaign_parts.hostile_names import names, yamls
from fault_campaign_parts.hostile_pickles import arrays, pickles
from fault_campaign_parts.report import Case, Result

MEMORY = 3 << 30  # bytes that a command may allocate; the bombs need more


def malicious_cases(bench: Bench) -> list[Case]:
    """Return the cases of this part."""
    attacks = [*pickles(bench), *arrays(bench), *yamls(bench), *names(bench), *archives(bench)]
    attacks += bombs(bench)
    return [
        Case("malicious", attack.subject, f"malicious/{attack.name}", partial(attempt, attack))
        for attack in attacks
    ]


def attempt(attack: Attack, folder: Path, random: Random) -> Result:
    """Run one attack."""
    result = Result()
    own = folder / "own"
    own.mkdir()
    (folder / ELSEWHERE).mkdir()
    made = run(partial(attack.make, own), folder / "make")
    (own / MARKER).unlink(missing_ok=True)
    if made.code:
        result.problems.append(f"the file cannot be made: {made.text[-500:]}")
        return result
    outcome = run(guarded(limited(partial(attack.target, own), MEMORY)), folder / "read")
    result.counts["attacks"] += 1
    if list(folder.rglob(MARKER)):
        result.problems.append("CODE of the file RAN")
    if any((folder / ELSEWHERE).iterdir()):
        result.problems.append("a file was written elsewhere")
    if outcome.complaint():
        result.problems.append(outcome.complaint())
    if not outcome.code and not attack.may_succeed:
        result.problems.append("it was accepted")
    if attack.check is not None and not outcome.code and (wrong := attack.check(own)):
        result.problems.append(wrong)
    result.counts["refused" if outcome.code else "read as plain data"] += 1
    result.notes.append(outcome.last_line())
    return result
