"""The fault campaign: faults are injected, cases run, and broken guarantees are found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
import torch

from fault_campaign_parts.artefacts import digests, leftovers, tree_digest
from fault_campaign_parts.boundaries import Boundaries
from fault_campaign_parts.children import Child, Gate, Outcome, guarded, run
from fault_campaign_parts.full_disk import can_mount
from fault_campaign_parts.mutations import MUTATIONS, damage
from fault_campaign_parts.report import table
from vild.utils.files import atomic_path

from .. import forked

# one case per part, with fixtures that are made in seconds
CHEAP = (
    "kills/text embeddings/random-0",
    "kills/text embeddings/boundary-3",
    "kills/convert_proposals/boundary-12",
    "corruptions/store: manifest/0",
    "corruptions/annotations/0",
    "races/one file of text embeddings/0",
    "malicious/zip, ../elsewhere/x",
    "malicious/proposals, pickle",
    "full-disk/convert_proposals/error-0",
)


def campaign(*args: object) -> tuple[int | None, str]:
    return forked.run(["tools/fault_campaign.py", *args], timeout=900)


@pytest.mark.slow
def test_a_case_of_each_part(tmp_path: Path) -> None:
    cases = [word for name in CHEAP for word in ("--case", name)]
    code, output = campaign(*cases, "--out", tmp_path / "report.json", "--seed", "3")
    assert code == 0, output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {result["case"] for result in report["results"]} == set(CHEAP)
    assert report["seed"] == 3
    assert "| full-disk | convert_proposals | 1 |" in output
    assert not list(tmp_path.glob("*.log*"))


@pytest.mark.exhaustive
def test_a_sample_of_the_campaign() -> None:
    code, output = campaign("--every", 20)
    assert code == 0, output[-6000:]


def test_an_unknown_part_is_refused() -> None:
    code, output = campaign("--parts", "kills,rust")
    assert code == 2
    assert "got rust" in output.splitlines()[-1]


def write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def test_a_kill_strikes_at_every_boundary(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    whole = run(lambda: write(file, "new"), tmp_path, Boundaries(tmp_path))
    kinds = [line.split()[0] for line in whole.boundaries]
    assert kinds[-4:] == ["fsync", "rename", "fsync", "remove"]
    left = []
    for number in range(len(kinds)):
        file.write_text("old", encoding="utf-8")
        outcome = run(lambda: write(file, "new"), tmp_path, Boundaries(tmp_path, number))
        assert outcome.was_killed
        assert len(outcome.boundaries) == number + 1
        # a run removes leftovers of the previous one, so that their boundaries differ
        renamed = any(line.startswith("rename") for line in outcome.boundaries[:-1])
        assert file.read_text(encoding="utf-8") == ("new" if renamed else "old")
        left += leftovers(tmp_path)
    assert left


def test_a_full_disk_fails_from_a_boundary_on(tmp_path: Path) -> None:
    outcome = run(
        guarded(lambda: write(tmp_path / "file.txt", "new")),
        tmp_path,
        Boundaries(tmp_path, 1, full_disk=True),
    )
    assert outcome.code == 2
    assert "No space left on device" in outcome.text
    assert not outcome.complaint()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "text", "complaint"),
    [
        (0, "wrote it", ""),
        (2, "working\nerror: expected a file", ""),
        (2, "", "without a line"),
        (2, "error: one\ntwo\nthree", "an error of 3 lines"),
        (1, "Traceback (most recent call last)\n  x\nKeyError: error: 1", "a traceback"),
        (-11, "", "ended by signal 11"),
    ],
)
def test_how_a_failure_is_reported(code: int, text: str, complaint: str) -> None:
    found = Outcome(code, text, 0.1).complaint()
    assert complaint in found
    assert bool(found) == bool(complaint)


def test_children_wait_at_the_gate(tmp_path: Path) -> None:
    gate = Gate()
    children = [
        Child(lambda: (tmp_path / str(os.getpid())).touch(), tmp_path / "child", gate=gate)
        for _ in range(3)
    ]
    assert not any(child.ended(0.05) for child in children)
    gate.release(3)
    assert [child.wait().code for child in children] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 3


def test_damage_changes_the_bytes_and_follows_from_the_seed() -> None:
    original = bytes(range(256)) * 40
    found = {damage(original, Random(seed)) for seed in range(200)}
    assert all(data != original for data, _ in found)
    assert len(found) > 150
    assert damage(original, Random(7)) == damage(original, Random(7))
    for mutation in MUTATIONS:  # also for a single byte
        mutation(bytearray(b"x"), Random(0))


def test_digests_tell_contents_apart(tmp_path: Path) -> None:
    weights = {"model": {"a": torch.arange(3), "b": torch.zeros(0)}, "iteration": 1}
    digest = tree_digest(weights)
    for change in ({"iteration": 2}, {"model": {"a": torch.arange(3).float()}}):
        assert tree_digest({**weights, **change}) != digest
    torch.save(weights, tmp_path / "a.pth")
    (tmp_path / "log.txt").write_text("times", encoding="utf-8")
    (tmp_path / ".b.123.json").write_text("half", encoding="utf-8")
    assert digests(tmp_path) == {"a.pth": digest}
    assert leftovers(tmp_path) == [".b.123.json"]


def test_the_table_adds_up() -> None:
    row = {"part": "kills", "subject": "demo", "counts": {"kills": 2}, "problems": []}
    text = table([row, {**row, "problems": ["differs"]}])
    assert "| kills | demo | 2 | 4 kills | 1 |" in text


def test_whether_disks_can_be_mounted_is_known() -> None:
    assert can_mount() in (True, False)
