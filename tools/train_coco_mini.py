#!/usr/bin/env python
r"""Overfit ViLD-text on a few hundred COCO photographs, to test training on real images.

python tools/train_coco_mini.py --data FOLDER --text-embeddings FILE.npy

FOLDER is in COCO's layout (annotations/instances_{train,val}2017.json, train2017, val2017), FILE
contains CLIP's embeddings of COCO's 80 names in the order of their ids. Trains on the 48 base
classes, evaluates on the training images and on val2017, and fails if the AP on the training images
is too low. The AP of so few images is not worth quoting. Rerun the command to resume.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import tool_parser
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from experiments.stages import Stage

OUTPUT = Path("output/coco_mini")
DATASET = "datasets/coco_mini.yaml"
CONFIG = "configs/coco_mini/vild_text.yaml"
EXPECTED_AP50 = 30.0  # box, base classes, on the training images


def build_stages(data: Path, text_embeddings: Path, opts: list[str]) -> list[Stage]:
    """Return all stages, in order."""
    from experiments.stages import Stage

    text, run, val = OUTPUT / "text.safetensors", OUTPUT / "text", OUTPUT / "val"
    return [
        Stage(
            "text_embeddings",
            "import the embeddings of the 65 classes",
            (
                *("tools/extract_text_embeddings.py", "--dataset-yaml", DATASET),
                *("--vocabulary", "coco_mini_val", "--import", str(text_embeddings)),
                *("--import-classes", str(data / "annotations" / "instances_val2017.json")),
                *("--out", str(text)),
            ),
            (text,),
            seconds=10,
        ),
        Stage(
            "text",
            "overfit the base classes of the training images",
            ("projects/ViLD/train_net.py", "--resume", "--config-file", CONFIG, *opts),
            (run, run / "model_final.pth", run / "coco_mini_train_metrics.json"),
            ("text_embeddings",),
            seconds=1500,
        ),
        Stage(
            "val",
            "evaluate on other images",
            (
                *("projects/ViLD/train_net.py", "--eval-only", "--config-file", CONFIG),
                *("MODEL.WEIGHTS", str(run / "model_final.pth"), "OUTPUT_DIR", str(val)),
                *("DATASETS.TEST", '("coco_mini_val",)'),
            ),
            (val, val / "coco_mini_val_metrics.json"),
            ("text",),
            seconds=30,
        ),
    ]


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text-embeddings", type=Path, required=True)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of the training configuration"
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    data = args.data.resolve()
    for path in (data / "annotations" / "instances_val2017.json", args.text_embeddings):
        if not path.is_file():
            raise ValueError(f"expected a file at {path}, got none")
    from experiments.stages import StageRunner, run_or_exit
    from vild.reporting.runs import read_runs

    os.environ["COCO_MINI"] = str(data)
    print(f"export COCO_MINI={data}")
    stages = build_stages(data, args.text_embeddings, args.opts)
    run_or_exit(StageRunner(stages, OUTPUT / "stages"))
    files = [
        OUTPUT / name / f"coco_mini_{split}_metrics.json"
        for name, split in (("text", "train"), ("val", "val"))
    ]
    runs = read_runs(files, ["train", "val"])
    for run in runs:
        figures = run.results["bbox"]
        shown = ", ".join(f"{k} {figures[k]:.1f}" for k in ("AP50-base", "AP50-novel", "AP50-all"))
        print(f"box {shown} on {run.name}")
    if not runs[0].results["bbox"]["AP50-base"] > EXPECTED_AP50:
        print(f"error: expected AP50-base above {EXPECTED_AP50} on train", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
