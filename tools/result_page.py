#!/usr/bin/env python
r"""Write a result page: table, images, AP per class, curves, similarities and commands.

python tools/result_page.py --dataset shapes_val --out output/result/index.html \
    --run "ViLD-ensemble=output/shapes/both_heads" --run "CLIP on crops=output/shapes/clip" \
    --config-file configs/shapes/vild_ensemble.yaml \
    --weights output/shapes/ensemble/model_final.pth --regions output/shapes/embeddings/shapes_val

Images, bars and curves show the first run; the second is the comparison in the bars. A run is the
folder of a training or an evaluation by train_net.py. The page is one self-contained file. Exit
code: 0, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from vild_cli.arguments import add_data_arguments, fraction, path, positive_int, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="registered dataset of the runs")
    parser.add_argument(
        "--run", action="append", required=True, metavar="NAME=FOLDER", help="may be repeated"
    )
    parser.add_argument("--out", type=path, required=True, help="html file")
    parser.add_argument("--title", default="ViLD: open-vocabulary detection")
    parser.add_argument(
        "--task", choices=("bbox", "segm"), default="bbox", help="task of all metrics"
    )
    parser.add_argument("--images", type=positive_int, default=10, help="images to show")
    parser.add_argument("--threshold", type=fraction, default=0.3, help="minimum score to draw")
    group = parser.add_argument_group("heat map of region against text embeddings")
    group.add_argument("--config-file", help="configuration of the detector")
    group.add_argument("--weights", help="checkpoint of the detector")
    group.add_argument("--regions", help="store of the teacher's embeddings of the dataset")
    group.add_argument("--region-images", type=positive_int, default=200, help="images to use")
    group.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of its configuration"
    )
    parser.add_argument(
        "--stages",
        type=path,
        help="folder of the quickstart's records, to show its commands and times",
    )
    add_data_arguments(parser)
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    bad = [run for run in args.run if not all(part.strip() for part in run.partition("="))]
    if bad:
        raise ValueError(f"expected --run NAME=FOLDER, got {bad[0]!r}")
    if bool(args.config_file) != bool(args.regions) or bool(args.regions) != bool(args.weights):
        raise ValueError(
            "expected --config-file, --weights and --regions together, or none of them"
        )
    folders = {name: Path(folder) for name, folder in (run.split("=", 1) for run in args.run)}
    if len(folders) < len(args.run):
        raise ValueError("expected a different NAME for each --run, got one twice")
    from experiments.result_page import write_result_page

    write_result_page(folders, args)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
