#!/usr/bin/env python
"""Time the detector against Detectron2's Mask R-CNN of the same heads, in one run.

python tools/benchmark_detector.py                    # all of it: about 20 minutes on two cores
python tools/benchmark_detector.py --only selection

Weights and the image are random, the sizes are the official ones. Both sides run alternately, and
each figure is a ratio of medians. The Mask R-CNN has a linear classifier whose logits spread as
much as cosines of random embeddings over 0.01; its score threshold is 0.05, where its selection
costs almost nothing. Ours is 0.
"""

from __future__ import annotations

import argparse
import sys

from vild_cli.arguments import positive_int, tool_parser

SECTIONS = ("selection", "training", "inference", "precision")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=5,
        help="runs of each side, of which the median is reported",
    )
    parser.add_argument("--device", help="a GPU by default, if there is one")
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    args.only = args.only or SECTIONS
    from benchmarks.detector import benchmark

    return benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
