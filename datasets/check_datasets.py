#!/usr/bin/env python
"""Report what is present, missing or broken in LVIS v1, COCO 2017 or a custom dataset.

    python datasets/check_datasets.py                          # LVIS and COCO below the data root
    python datasets/check_datasets.py --custom birds.yaml      # a custom dataset
    python datasets/check_datasets.py --download lvis          # download missing files, then check

The exit code is 0 if nothing is missing or broken, 1 otherwise. Nothing is downloaded without
``--download``.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vild.data.download import fetch
from vild.data.inspection import (
    DATASETS,
    IMAGE_CHECKS,
    SAMPLE_SIZE,
    DatasetReport,
    inspect_custom,
    inspect_dataset,
    layout_in_use,
)
from vild.data.registry import data_root
from vild_cli.arguments import tool_parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the data root; $DETECTRON2_DATASETS or ./datasets by default",
    )
    parser.add_argument(
        "--dataset",
        choices=(*DATASETS, "all"),
        help="what to check; by default all, or only --custom or --download if given",
    )
    parser.add_argument(
        "--custom",
        type=Path,
        metavar="YAML",
        help="check the dataset that this yaml describes",
    )
    parser.add_argument(
        "--images",
        choices=IMAGE_CHECKS,
        default="sample",
        help=f"which images to decode completely; sample: {SAMPLE_SIZE} per split. Missing "
        "images are always reported",
    )
    parser.add_argument(
        "--download",
        choices=DATASETS,
        help="first download and unpack what is missing (about 20 GB, temporarily twice that); "
        "an interrupted download is resumed",
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep the zip files of --download"
    )
    # for mirrors, not for daily use: datasets/README.md
    parser.add_argument("--archive-base", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.download is None and (args.keep_archives or args.archive_base):
        parser.error("--keep-archives and --archive-base need --download")
    return args


def tree(report: DatasetReport) -> list[str]:
    """List the expected files and folders below the root, each marked as present or missing."""
    lines = [f"{'':<10}{report.root}/"]
    shown: set[Path] = set()
    for entry in sorted(report.entries, key=lambda entry: entry.path):
        mark = "found" if entry.exists else "missing"
        end = "/" if entry.is_folder else ""
        if not entry.path.is_relative_to(report.root):
            lines.append(f"  {mark:<8}  {entry.path}{end}")
            continue
        path = entry.path.relative_to(report.root)
        for folder in reversed(path.parents):
            if folder.name and folder not in shown:
                lines.append(f"{'':<10}{'  ' * len(folder.parts)}{folder.name}/")
                shown.add(folder)
        lines.append(f"  {mark:<8}{'  ' * len(path.parts)}{path.name}{end}")
    return lines


def show(report: DatasetReport) -> None:
    """Print one report."""
    print(f"{report.name} ({report.layout} layout)")
    print(*tree(report), sep="\n")
    for split in report.splits:
        if split.counts is None:
            continue
        counts = split.counts
        groups = ", ".join(f"{n} {group}" for group, n in sorted(counts.frequencies.items()))
        print(
            f"  {split.name}: {counts.images:,} images, {counts.annotations:,} annotations, "
            f"{counts.categories:,} classes{f' ({groups})' if groups else ''}; "
            f"{split.images_opened:,} images opened"
        )
        if counts.objects:
            objects = ", ".join(f"{n:,} of {group} classes" for group, n in counts.objects.items())
            print(f"  {'':{len(split.name)}}  objects: {objects}")
    for problem in report.problems:
        print(f"  {problem.severity}: {problem.text}")
    print()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vild.data.download").setLevel(logging.INFO)
    root = data_root() if args.root is None else Path(os.path.expanduser(args.root))
    if args.download is not None:
        try:
            fetch(
                args.download,
                root,
                flat=layout_in_use(args.download, root) == 1,
                archive_base=args.archive_base,
                keep_archives=args.keep_archives,
            )
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    names = [args.download] if args.download is not None else []
    if args.dataset == "all" or (args.dataset is None and not names and args.custom is None):
        names = list(DATASETS)
    elif args.dataset is not None and args.dataset not in names:
        names.append(args.dataset)
    reports = [inspect_dataset(name, root, args.images) for name in names]
    if args.custom is not None:
        reports.append(inspect_custom(Path(os.path.expanduser(args.custom)), args.images))
    for report in reports:
        show(report)
    errors = sum(report.errors for report in reports)
    warnings = sum(p.severity == "warning" for report in reports for p in report.problems)
    checked = ", ".join(report.name for report in reports)
    print(f"{checked}: {'FAILED' if errors else 'ok'} (errors: {errors}, warnings: {warnings})")
    return int(errors > 0)


if __name__ == "__main__":
    sys.exit(main())
