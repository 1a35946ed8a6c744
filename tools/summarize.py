#!/usr/bin/env python
"""Summarise several runs in one table in the paper's layout, with their curves.

python tools/summarize.py output/vild output/ensemble --names ViLD ViLD-ensemble --out-dir output
python tools/summarize.py output/eval/lvis_v1_val_metrics.json --reference --out-dir output

A run is its folder, its metrics.json, or a <dataset>_metrics.json of an evaluation. Runs on LVIS
are reported as APr, APc, APf and AP of masks, those on COCO as box AP50 of novel, base and all
classes. Writes summary.md, summary.csv and summary.png. Exit code: 0, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys

from vild_cli.arguments import path, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=path, nargs="+", help="folder of a run, or file of its metrics")
    parser.add_argument(
        "--names", nargs="+", help="one per run; by default the names of the folders"
    )
    parser.add_argument("--out-dir", type=path, required=True)
    parser.add_argument(
        "--task",
        choices=("segm", "bbox"),
        help="by default what the paper reports: masks, or boxes on COCO",
    )
    parser.add_argument(
        "--reference", action="store_true", help="add the paper's rows, marked as published"
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    from vild.reporting.runs import read_runs
    from vild.reporting.summary import build_tables, to_markdown, write_summary

    runs = read_runs(args.run, args.names)
    tables = build_tables(runs, args.task, args.reference)
    files = write_summary(args.out_dir, runs, tables)
    print(to_markdown(tables))
    print(f"wrote {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
