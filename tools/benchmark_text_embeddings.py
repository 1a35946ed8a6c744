#!/usr/bin/env python
"""Measure the text encoder's share of the time to embed a vocabulary.

Weights are random: speed does not depend on them. Use --classes 1203 for the size of LVIS.

python tools/benchmark_text_embeddings.py --classes 100
"""

from __future__ import annotations

import argparse
import sys

from vild_cli.arguments import tool_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--model", default="ViT-B-32")
    return parser


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from benchmarks.text_embeddings import benchmark

    return benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
