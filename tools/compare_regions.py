#!/usr/bin/env python
"""Compare how well region embeddings of the teacher and of trained detectors classify objects.

All use the same proposals: those of a store that cover an annotated object (IoU of 0.5 or more).
Prints the share whose nearest text embedding is that of the object's class. Unlike AP, it does not
depend on scores, boxes or background.

python tools/compare_regions.py --config-file configs/shapes/vild_ensemble.yaml \
    --dataset shapes_val --regions output/shapes/embeddings/shapes_val \
    --weights output/shapes/ensemble/model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vild_cli.arguments import add_data_arguments, positive_int, tool_parser
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.evaluation.similarity import SimilarityMeter


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", required=True, help="configuration of the detectors")
    parser.add_argument("--weights", required=True, nargs="+", help="checkpoints of the detectors")
    parser.add_argument(
        "--dataset", required=True, help="registered dataset, with all classes annotated"
    )
    parser.add_argument(
        "--regions", required=True, help="store of the teacher's embeddings of the dataset"
    )
    parser.add_argument("--images", type=positive_int, help="images to use; all by default")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of the configuration"
    )
    add_data_arguments(parser)
    return parser


def report(name: str, meter: SimilarityMeter) -> None:
    """Print one line of the comparison."""
    shares = []
    for kind, novel in (("base", False), ("novel", True)):
        count = meter.count(novel)
        shares.append(f"{meter.accuracy(novel):.1f} % of {count} {kind}" if count else f"no {kind}")
    print(f"{name}: classified correctly: {', '.join(shares)} regions", flush=True)


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from vild.config import read_config, use_available_device
    from vild.data import register_from_arguments
    from vild.embeddings import EmbeddingStore
    from vild.engine.region_similarity import compare_regions

    register_from_arguments(args)
    store = EmbeddingStore(args.regions)
    for number, weights in enumerate(args.weights):
        cfg = read_config(args.config_file, ["MODEL.WEIGHTS", weights, *args.opts])
        use_available_device(cfg)
        teacher, detector = compare_regions(cfg, args.dataset, store, args.images)
        if number == 0:
            report("the teacher", teacher)
        report(weights, detector)
    return 0


if __name__ == "__main__":
    sys.exit(main())
