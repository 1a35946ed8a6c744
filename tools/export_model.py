#!/usr/bin/env python
r"""Export a trained detector to TorchScript and ONNX, to run it without this project.

python tools/export_model.py --config-file configs/LVIS/vild_ensemble_r50_fpn_lsj.yaml \
    --vocabulary "red kite, osprey" --sample-image street.jpg --output exported \
    --opts MODEL.WEIGHTS model_final.pth

The vocabulary is an input of the exported model (--text-embeddings input), or part of it (baked).
Every file is loaded again and must match the detector to 1e-4 before it is kept. docs/EXPORT.md
describes inputs and outputs. Exit code: 0, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import add_vocabulary_arguments, positive_int, tool_parser
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.export.exporting import Exported

FORMATS = ("torchscript", "onnx")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="a new or empty folder, or an earlier export, which is replaced",
    )
    parser.add_argument(
        "--sample-image",
        required=True,
        nargs="+",
        metavar="FILE",
        help="images to compare on; the first one is traced",
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--text-embeddings", choices=("input", "baked"), default="input")
    add_vocabulary_arguments(parser)
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="repeats of the time measurements"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def report(item: Exported) -> None:
    """Print size, times and the agreement with the detector."""
    import torch

    print(
        f"wrote {item.file}: {item.megabytes:.1f} MB; {item.image[0]} x {item.image[1]} pixels "
        f"in {item.seconds:.3f} s, the original detector in {item.eager_seconds:.3f} s "
        f"({torch.get_num_threads()} threads)"
    )
    for check in item.checks:
        print(
            f"    {check.case}: {check.detections} detections; differences up to "
            f"{check.boxes:.1e} pixels, {check.scores:.1e} of a score, {check.masks:.1e} of a mask"
        )


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args()
    from vild.config import read_config, register_datasets
    from vild.data import read_image
    from vild.export.exporting import export_detector
    from vild.inference.arguments import predictor_from_arguments

    cfg = read_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    register_datasets(cfg)
    images = [read_image(file) for file in args.sample_image]
    written = export_detector(
        predictor_from_arguments(cfg, args).model,
        cfg,
        args.output,
        images,
        formats=args.format,
        text_input=args.text_embeddings == "input",
        repeats=args.repeats,
    )
    for item in written:
        report(item)
    return 0


if __name__ == "__main__":
    sys.exit(main())
