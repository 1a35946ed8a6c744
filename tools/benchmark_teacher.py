#!/usr/bin/env python
"""Measure the path from images to stored embeddings; every figure is a ratio within one run.

Images, boxes and weights are random: speed does not depend on their content.

python tools/benchmark_teacher.py                       # all parts
python tools/benchmark_teacher.py --part crops --part store
"""

from __future__ import annotations

import argparse
import sys

from vild_cli.arguments import tool_parser

PARTS = ("crops", "extraction", "store", "opening", "processes")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="all by default")
    parser.add_argument("--device")
    parser.add_argument(
        "--precision", help="precision of the encoder; by default that of the extraction"
    )
    parser.add_argument("--images", type=int, default=8, help="images of the part `extraction`")
    parser.add_argument("--regions", type=int, default=32, help="regions per image, likewise")
    parser.add_argument("--batch-size", type=int, default=32, help="crops per batch")
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from benchmarks.teacher import benchmark

    return benchmark(args, args.part or PARTS)


if __name__ == "__main__":
    sys.exit(main())
