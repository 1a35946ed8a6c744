#!/usr/bin/env python
"""Time and memory of LVIS's evaluation: writing the detections, then measuring them.

python tools/benchmark_evaluation.py                  # 2000 images x 300 masks
python tools/benchmark_evaluation.py --official       # beside it the official package by itself
python tools/benchmark_evaluation.py --encoding       # masks to run lengths alone, by pycocotools

Images, objects and detections are random, the numbers are LVIS's: 1203 classes, labels for some
of them in each image. Half of the detections are of classes that were looked for in the image;
the others do not count, but the file has them. Each step runs in a process of its own, whose peak
memory is printed; half of the images are measured too, and the two give the memory for all of
LVIS's validation images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

STEPS = ("write", "evaluate", "official")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--detections", type=int, default=300, help="of a picture")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--objects", type=int, default=12, help="of a picture")
    parser.add_argument("--negatives", type=int, default=12, help="absent classes of a picture")
    parser.add_argument("--official", action="store_true", help="the official package too")
    parser.add_argument("--encoding", action="store_true", help="only the masks' run lengths")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from tool_parts.benchmark_evaluation import benchmark

    return benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
