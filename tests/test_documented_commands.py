"""Every command of docs/COMMANDS.md runs, on a few images of `shapes`."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vild.data.shapes import generate_shapes

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU the launcher takes NCCL (gpu)"
)
# what makes a command of the table small
SMALLER = {
    "lvis_v1_": "shapes_",
    "configs/LVIS/rpn_baseline_r50_fpn.yaml": "configs/shapes/rpn_baseline.yaml",
    "configs/LVIS/vild_ensemble_r50_fpn_1x.yaml": "configs/shapes/vild_ensemble.yaml",
    "configs/LVIS/vild_ensemble_r50_fpn_lsj.yaml": "configs/shapes/vild_ensemble.yaml",
    "configs/LVIS/vild_text_r50_fpn_lsj.yaml": "configs/shapes/vild_text.yaml",
    "configs/LVIS/": "configs/shapes/",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "output/lvis_vild_text_lsj": "output/all",  # no row trains it on base classes alone
    "output/lvis_": "output/",
}
TWO_PROCESSES = ("train on one machine of 8 GPUs", "test on 8 GPUs")
TRAINING = {
    "MODEL.VILD.TEXT_EMBEDDINGS": "embeddings/shapes_text.safetensors",
    "MODEL.VILD.DISTILL.STORE": "embeddings/shapes_train_base",
    "DATASETS.PROPOSAL_FILES_TEST": "('embeddings/shapes_val',)",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "()",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "10",
    "TEST.DETECTIONS_PER_IMAGE": "10",
}


def rows() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
    table = text.split("\n\n")[2].splitlines()[2:]
    found = {}
    for line in table:
        _, task, cell, _ = line.split("|")
        found[task.strip()] = [c for c in re.findall("`([^`]+)`", cell) if " " in c]
    return found


def smaller(command: str) -> list[str]:
    """The command with small data, paths of this repository and this interpreter."""
    recipe = re.search(r"configs/LVIS/\S+", command)
    for large, small in SMALLER.items():
        command = command.replace(large, small)
    words = shlex.split(command)
    if words[0] == "torchrun":
        words[:1] = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    else:
        words[:1] = [sys.executable, "-W", "ignore"]
    words = [
        str(ROOT / w) if w.startswith(("tools/", "projects/", "configs/")) else w for w in words
    ]
    if "train_net.py" in command:
        if "OUTPUT_DIR" not in words:  # each recipe's own, so that --resume finds no other training
            assert recipe is not None
            (output,) = re.findall(
                r"OUTPUT_DIR: \./output/lvis_(\w+)", (ROOT / recipe[0]).read_text()
            )
            words += ["OUTPUT_DIR", f"output/{output}"]
        words += [word for pair in TRAINING.items() for word in pair]
    if "extract_image" in command or "extract_text" in command:
        words += ["--model", "vild-shapes"]
    if "extract_image" in command:
        words += ["--pretrained", "", "--regions", "8", "--num-processes", "1"]
    if "extract_proposals" in command:
        words += ["--topk", "20", "--num-processes", "1"]
    return words


def test_the_table_is_complete() -> None:
    found = rows()
    assert len(found) == 15
    assert all(found.values())


@pytest.mark.slow
def test_every_command_of_the_table(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "shapes", train_images=4, val_images=2, progress=False)
    environ = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start(words: list[str]) -> subprocess.Popen[str]:
        # interpreters of their own, whose launcher really spawns; other tests fork (forked.py)
        return subprocess.Popen(
            words,
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for task, commands in rows().items():
        for command in commands:
            if "RANK" in command:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    meeting = f"127.0.0.1:{probe.getsockname()[1]}"
                command = command.replace("ADDRESS:PORT", meeting).replace("--num-gpus 8 ", "")
                running = [start(smaller(command.replace("RANK", rank))) for rank in "01"]
            else:
                processes = "2" if task in TWO_PROCESSES else "1"
                command = command.replace("--num-gpus 8", f"--num-gpus {processes}")
                running = [start(smaller(command))]
            for process in running:
                output, _ = process.communicate(timeout=300)
                assert process.returncode == 0, f"{task}: {command}\n{output[-3000:]}"

    assert (tmp_path / "output/rpn_baseline/model_final.pth").is_file()
    assert (tmp_path / "output/vild_ensemble_lsj/model_final.pth").is_file()
    detections = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(detections[0])
    assert len(list((tmp_path / "shown").iterdir())) == 2
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    assert list((tmp_path / "summary").glob("*.md"))
