#!/usr/bin/env python
"""Make the synthetic benchmark ``shapes``: 2000 training and 500 validation images from a seed.

python tools/make_shapes.py
python tools/make_shapes.py --seed 1 --contact-sheet output/shapes.png
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vild_cli.arguments import positive_int, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the classes and images (default: 0)"
    )
    parser.add_argument("--out-dir", type=Path, help="by default shapes below $DETECTRON2_DATASETS")
    parser.add_argument("--train-images", type=positive_int, default=2000)
    parser.add_argument("--val-images", type=positive_int, default=500)
    parser.add_argument(
        "--workers", type=positive_int, help="number of processes; one per core by default"
    )
    parser.add_argument("--contact-sheet", type=Path, help="PNG with the first images, annotated")
    parser.add_argument("--digest", action="store_true", help="print a digest of the pixels")
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from vild.data.shapes import generate_shapes
    from vild.data.shapes.dataset import shapes_folder
    from vild.utils.files import require_writable_file

    folder = args.out_dir or shapes_folder(args.seed)
    start = time.perf_counter()
    if args.contact_sheet:
        require_writable_file(args.contact_sheet, "--contact-sheet")
    written = generate_shapes(folder, args.seed, args.train_images, args.val_images, args.workers)
    report(args, folder, time.perf_counter() - start if written else None)
    return 0


def report(args: argparse.Namespace, folder: Path, seconds: float | None) -> None:
    """Print a summary of the dataset, and write the contact sheet if requested.

    Args:
        args: parsed arguments.
        folder: folder of the dataset.
        seconds: time taken; None if the dataset already existed.
    """
    from vild.data.shapes import pixel_digest, register_shapes
    from vild.reporting.contact_sheet import write_contact_sheet

    if seconds is not None:
        print(f"wrote {folder} in {seconds:.1f} s")
    else:
        print(f"{folder} already exists")
    if args.digest:
        print(f"pixels and annotations: sha256 {pixel_digest(folder)}")
    if args.contact_sheet:
        names = register_shapes(args.seed, folder)
        (train,) = (name for name in names if name.endswith("_train"))
        print(f"wrote {write_contact_sheet(train, args.contact_sheet)}")


if __name__ == "__main__":
    sys.exit(main())
