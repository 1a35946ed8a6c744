#!/usr/bin/env python
"""Measure time and memory of LVIS evaluation: writing the detections, then evaluating them.

python tools/benchmark_evaluation.py                  # 2000 images x 300 masks
python tools/benchmark_evaluation.py --official       # also run the plain official package
python tools/benchmark_evaluation.py --encoding       # only mask encoding, against pycocotools

Images, objects and detections are random, with LVIS's numbers: 1203 classes, some of them labelled
in each image. Half of the detections are of classes that were searched in the image; the others are
in the file but do not count. Each step runs in a separate process, whose peak memory is printed.
Half of the images are also measured, to extrapolate the memory for LVIS's validation set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vild_cli.arguments import tool_parser

STEPS = ("write", "evaluate", "official")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--objects", type=int, default=12, help="per image")
    parser.add_argument("--negatives", type=int, default=12, help="absent classes per image")
    parser.add_argument("--official", action="store_true", help="also run the official package")
    parser.add_argument("--encoding", action="store_true", help="only mask encoding")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from benchmarks.evaluation import benchmark

    return benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
