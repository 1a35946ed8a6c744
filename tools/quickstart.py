#!/usr/bin/env python
"""Run the paper's experiment on `shapes`, from nothing to a result page (`make quickstart`).

Each stage is one of the project's commands and is printed. Rerun the command to resume; finished
stages are skipped.
Exit code: 0; 1 if a stage failed or distillation does not help on novel classes; 2 for
any other error; 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time

from vild_cli.arguments import positive_int, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--images", type=positive_int, nargs=2, metavar=("TRAIN", "VAL"), help="number of images"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of every configuration"
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from experiments import quick
    from experiments.progress import format_time
    from experiments.stages import StageRunner, run_or_exit

    images = tuple(args.images) if args.images else quick.IMAGES
    pipeline = quick.quick_pipeline(options=tuple(args.opts), images=images)
    runner = StageRunner(quick.build_stages(pipeline), quick.OUTPUT / "stages")
    begin = time.monotonic()
    worked = run_or_exit(runner, "`make quickstart`")
    holds, sentence = quick.verdict(pipeline)
    if worked:
        peak = max(record.peak_bytes for record in runner.records.values())
        took = format_time(time.monotonic() - begin)
        print(f"\nDone in {took}, with at most {peak / 2**30:.1f} GiB of memory.")
    else:
        print(f"Nothing to do: all {len(runner.stages)} stages are up to date.")
    print(f"{sentence}\nOpen {quick.PAGE.resolve()}")
    if not holds:
        print("error: expected the ensemble above its text head", file=sys.stderr)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
