"""Training with submitit, using its local executor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from submit_train import Training

from .. import small_shapes


@pytest.mark.slow
def test_two_processes_of_a_local_job(repository: Path, tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 2)
    command = [
        *(sys.executable, "-W", "ignore", "tools/submit_train.py", "--cluster", "local", "--wait"),
        *("--gpus-per-node", "2", "--timeout-min", "5", "--log-dir", str(tmp_path / "logs")),
        *("--config-file", "configs/shapes/vild_text.yaml", "OUTPUT_DIR", str(tmp_path / "run")),
        *("MODEL.VILD.TEXT_EMBEDDINGS", str(tmp_path / "text.safetensors")),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
        *("DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"),
    ]
    environ = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=repository, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model_final.pth").is_file()
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "World size: 2" in log
    assert len(list((tmp_path / "logs").glob("*_log.out"))) == 2


def test_a_job_that_is_submitted_again_resumes() -> None:
    again = Training(["--config-file", "a.yaml"], 1).checkpoint().function
    assert again.arguments == ["--resume", "--config-file", "a.yaml"]
    assert again.checkpoint().function.arguments == again.arguments
