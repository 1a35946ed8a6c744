#!/usr/bin/env python
r"""Detect objects of any vocabulary in images, a video or a webcam's frames.

python tools/demo.py --config-file configs/LVIS/vild_ensemble_r50_fpn_lsj.yaml \
    --input photos --vocabulary "red kite, osprey" --output found \
    --opts MODEL.WEIGHTS model_final.pth
python tools/demo.py --config-file ... --video-input walk.mp4 --output found.mp4 --opts ...

Words of --vocabulary count as novel, unless the detector was trained on them as base classes or
--novel says otherwise. Exit code: 0 if everything was written; 3 if images failed or a video ended
early, which are listed at the end; 2 for any other error.
"""

from __future__ import annotations

import argparse
import logging
import sys

from vild_cli.arguments import (
    add_precision_argument,
    add_vocabulary_arguments,
    fraction,
    path,
    positive_int,
    tool_parser,
)
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", help="files, folders or glob patterns ('photos/*.jpg')"
    )
    source.add_argument("--video-input", type=path, help="video file")
    source.add_argument("--webcam", action="store_true", help="the first camera, until Ctrl-C")
    add_vocabulary_arguments(parser)
    parser.add_argument("--confidence-threshold", type=fraction, default=0.3, help="0.3 by default")
    parser.add_argument(
        "--output", type=path, help="folder for images, file for one image or for the video"
    )
    parser.add_argument("--results", type=path, help=".json (COCO's results format) or .csv")
    add_precision_argument(parser, "auto")
    parser.add_argument(
        "--max-frames", type=positive_int, help="maximum frames of a video or webcam"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args()
    if args.video_input is not None and not args.video_input.is_file():
        raise ValueError(f"expected a video at {args.video_input}: no such file")
    from vild.inference.demo import detect

    failed = detect(args)
    for written in (args.output, args.results):
        if written is not None and written.exists():  # absent if the only image failed
            print(f"wrote {written}")
    for reason in failed:
        print(f"failed: {reason}", file=sys.stderr)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
