#!/usr/bin/env python
"""Compare proposal extraction with the detector alone; every figure is a ratio within one run.

"resized between" is the same extraction with images read ahead, but resized and converted to
float32 between two runs of the detector. Images and weights are random.

python tools/benchmark_proposals.py                     # the detector of --config-file
python tools/benchmark_proposals.py --stand-in-ms 20    # without a GPU: simulate 20 ms per image
"""

from __future__ import annotations

import argparse
import sys

from vild_cli.arguments import positive_float, positive_int, tool_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", default="configs/LVIS/rpn_baseline_r50_fpn.yaml")
    parser.add_argument("--device")
    parser.add_argument(
        "--stand-in-ms", type=positive_float, help="simulated milliseconds per image"
    )
    parser.add_argument("--images", type=positive_int, default=16)
    parser.add_argument("--threads", type=positive_int, default=2, help="image-loading threads")
    parser.add_argument("--rounds", type=positive_int, default=3)
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from benchmarks.proposals import benchmark

    return benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
