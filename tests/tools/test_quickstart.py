"""The quickstart itself, on a few images and two steps: stopped in every stage, and its page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = ("--images", "24", "6", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
DELAY = 3.5  # seconds into a stage: most have imported torch by then, and hardly one is done


def start(folder: Path) -> subprocess.Popen[str]:
    command = (sys.executable, "-u", "tools/quickstart.py", *SMALL)
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.exhaustive
def test_stopped_in_every_stage_it_goes_on(tmp_path: Path, repository: Path) -> None:
    for name in ("tools", "projects", "configs"):
        (tmp_path / name).symlink_to(repository / name)
    total = stopped = 0
    stages = tmp_path / "output/quickstart/stages"
    for _ in range(40):
        done = {json.loads(r.read_text())["number"] + 1 for r in stages.glob("*.json")}
        process = start(tmp_path)
        assert process.stdout is not None
        seen, is_told = [], False
        for line in process.stdout:
            seen.append(line)
            begun = re.match(r"\[(\d+)/(\d+)\]", line)
            if begun and int(begun[1]) > stopped and not is_told:  # was not stopped yet
                stopped, total = map(int, begun.groups())
                time.sleep(DELAY)
                process.send_signal(signal.SIGINT)
                is_told = True
        code = process.wait()
        if code != 130:
            break
        # what was done before is not done again
        assert not done & {int(n) for n in re.findall(r"^\[(\d+)/", "".join(seen), re.MULTILINE)}
    assert stopped == total == 12
    records = sorted(stages.glob("*.json"))
    assert len(records) == 12
    # so little training proves nothing: it says so, and fails unless novel classes profit
    text = "".join(seen)
    assert ("does NOT help" in text) == (code == 1)
    assert code in (0, 1)

    begin = time.monotonic()
    process = start(tmp_path)
    said, _ = process.communicate()
    assert time.monotonic() - begin < 30
    assert process.returncode == code
    assert "Nothing to do: all 12 stages" in said
    assert not re.search(r"^\[\d+/", said, re.MULTILINE)

    page = (tmp_path / "output/quickstart/index.html").read_text(encoding="utf-8")
    for row in ("ViLD-ensemble", "its text head alone", "CLIP on cropped"):
        assert f"<td>\n{row}" in page or f">{row}" in page
    for section in (
        "Results",
        "Images",
        "AP of each class",
        "Region embeddings and class names",
        "Commands",
    ):
        assert f">{section}</h2>" in page
    assert page.count("<img") >= 6
    peaks = [json.loads(record.read_text())["peak_bytes"] for record in records]
    assert max(peaks) < 4 * 2**30
    assert os.listdir(tmp_path / "datasets") == ["shapes"]  # no half-made images
