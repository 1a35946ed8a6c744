#!/usr/bin/env python
r"""Draw the detections of a results file next to the ground truth, one file per image.

python tools/visualize_results.py --dataset lvis_v1_val --results detections.json \
    --out-dir output/images --limit 50

The results file is in COCO or LVIS format, as written by train_net.py --eval-only and Detectron2's
evaluators. Names of novel classes begin with a star. Exit code: 0, or 3 if images could not be
drawn, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from vild_cli.arguments import add_data_arguments, fraction, path, positive_int, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="registered dataset of the results")
    parser.add_argument("--results", type=path, required=True, help="json of the detections")
    parser.add_argument("--out-dir", type=path, required=True)
    parser.add_argument("--threshold", type=fraction, default=0.3, help="minimum score to draw")
    parser.add_argument(
        "--limit", type=positive_int, help="maximum number of images, the first ones"
    )
    parser.add_argument("--images", nargs="+", metavar="ID", help="draw only these images")
    parser.add_argument("--no-ground-truth", action="store_true", help="draw only the detections")
    add_data_arguments(parser)
    return parser


def choose(records: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Select the records to draw, in the dataset's order.

    Raises:
        ValueError: an image is not in the dataset.
    """
    if args.images:
        wanted = set(args.images)
        absent = sorted(wanted - {str(record["image_id"]) for record in records})
        if absent:
            raise ValueError(f"{args.dataset} has no image {', '.join(absent[:5])}: check --images")
        records = [record for record in records if str(record["image_id"]) in wanted]
    return records[: args.limit]


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    from detectron2.data import MetadataCatalog
    from tqdm import tqdm

    from vild.data import Vocabulary, find_split, register_from_arguments
    from vild.reporting import ImageWriter, instances_from_results, read_results_by_image
    from vild.utils.files import require_writable_folder

    require_writable_folder(args.out_dir, "--out-dir")
    register_from_arguments(args)
    records = find_split(args.dataset)
    rows = MetadataCatalog.get(args.dataset).thing_dataset_id_to_contiguous_id
    results = read_results_by_image(args.results, [record["image_id"] for record in records], rows)
    chosen = choose(records, args)
    writer = ImageWriter(
        args.out_dir,
        Vocabulary.from_dataset(args.dataset),
        [] if args.no_ground_truth else chosen,
        args.threshold,
    )
    failed = {}
    for record in tqdm(chosen, unit="img", disable=None):
        # avoid decoding masks of detections below the threshold, which are never drawn
        own = [e for e in results.get(record["image_id"], ()) if e.score >= args.threshold]
        try:
            size = (record["height"], record["width"])
            writer.write(record, instances_from_results(own, size, rows))
        except (ValueError, OSError) as error:
            failed[record["image_id"]] = error
    print(f"{args.out_dir}: {writer.written} images")
    for image, reason in failed.items():
        print(f"failed: image {image}: {reason}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
