"""The trainer as a user calls it: train, resume with the optimizer's state, evaluate."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog

from vild.data.shapes import generate_shapes
from vild_cli.training import parse

from . import forked
from .making import text_embeddings

ROOT = Path(__file__).parents[1]
MINE = """
import sys
from train_net import parse, run
from vild.engine import Trainer

class Mine(Trainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None, **options):
        print("evaluated by mine:", dataset_name)
        return super().build_evaluator(cfg, dataset_name, output_folder, **options)

if __name__ == "__main__":
    run(parse(sys.argv[1:]), Mine)
"""


def made(tmp_path: Path) -> None:
    """Four images and text embeddings of the classes, without a teacher."""
    generate_shapes(tmp_path / "shapes", train_images=4, val_images=2, progress=False)
    classes = MetadataCatalog.get("shapes_train")
    novel = [n for n, flag in zip(classes.thing_classes, classes.novel, strict=True) if flag]
    text_embeddings(classes.thing_classes, 64, novel=novel).save(tmp_path / "text.safetensors")


def train_net(
    tmp_path: Path, *args: str, script: str | Path = "projects/ViLD/train_net.py", **env: str
) -> tuple[int | None, str]:
    command = [
        *(script, "--config-file", "configs/shapes/vild_text.yaml", *args),
        *("OUTPUT_DIR", str(tmp_path / "run")),
        *("MODEL.VILD.TEXT_EMBEDDINGS", str(tmp_path / "text.safetensors")),
    ]
    return forked.run(command, DETECTRON2_DATASETS=str(tmp_path), **env)


def run(tmp_path: Path, *args: str, **options: Any) -> str:
    settings = [
        *("DATASETS.TEST", "('shapes_val',)"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "5", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        *("TEST.DETECTIONS_PER_IMAGE", "5", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "SOLVER.IMS_PER_BATCH", "1"),
    ]
    code, output = train_net(tmp_path, *args, *settings, **options)
    assert code == 0, output[-3000:]
    return output


def test_trains_resumes_and_evaluates(tmp_path: Path) -> None:
    made(tmp_path)
    log = run(tmp_path, "SOLVER.MAX_ITER", "2")
    (scaled,) = [line for line in log.splitlines() if "instead of the recipe's" in line]
    assert "batch of 1 instead of the recipe's 8: 1/8 of the learning rate: 2 iter" in scaled
    assert scaled.endswith("2 iterations of 1 images, 0.5 epochs of 4 images")
    assert log.index(scaled) < log.index("Starting training from iteration 0")
    assert "SOLVER.BASE_LR: 0.02 -> 0.0025" in log
    state = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=False)
    momentum = state["trainer"]["_trainer"]["optimizer"]["state"]
    assert any(float(s["momentum_buffer"].abs().sum()) > 0 for s in momentum.values())

    log = run(tmp_path, "--resume", "SOLVER.MAX_ITER", "3")
    assert log.count("Starting training from iteration 2") == 1  # no logger is set up twice
    lines = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8").splitlines()
    assert all(0 < json.loads(line).get("total_loss", 1) < 100 for line in lines)

    log = run(tmp_path, "--eval-only", "MODEL.WEIGHTS", f"{tmp_path}/run/model_final.pth")
    assert "Task: bbox" in log
    assert "Task: segm" in log
    assert "APr" in log

    # the same by a script with a trainer of its own
    script = tmp_path / "mine.py"
    script.write_text(MINE, encoding="utf-8")
    path = f"{ROOT}/projects/ViLD:{os.environ.get('PYTHONPATH', '')}"
    options = ("--eval-only", "MODEL.WEIGHTS", f"{tmp_path}/run/model_final.pth")
    log = run(tmp_path, *options, script=script, PYTHONPATH=path)
    assert "evaluated by mine: shapes_val" in log


def test_bad_input_is_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    made(tmp_path)
    for options, message in (
        (("DATASETS.TEST", "('shapes_vla',)"), "in DATASETS.TEST, got 'shapes_vla'"),
        (("SOLVER.IMS_PER_BATCH", "0"), "expected SOLVER.IMS_PER_BATCH to be a number of at least"),
    ):
        code, output = train_net(tmp_path, *options)
        assert code == 1
        assert message in output.splitlines()[-1]
        assert "Traceback" not in output
    assert not list(tmp_path.glob("run/*.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "-1"], "--timeout: expected a number above 0"),
        (["--timeout", "nan"], "--timeout: expected a number above 0"),
        (["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
        (["--precision", "bf16"], "expected --eval-only with --precision bf16: training uses"),
    ],
)
def test_options_out_of_range(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(options)
    assert message in capsys.readouterr().err
