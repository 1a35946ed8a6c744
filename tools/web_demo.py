#!/usr/bin/env python
r"""Serve a web page where visitors upload an image, type words and see the detections.

python tools/web_demo.py --config-file configs/shapes/vild_ensemble.yaml \
    --words "striped red star, plain blue heart" --opts MODEL.WEIGHTS model_final.pth

By default only this machine can reach it. --host 0.0.0.0 serves all addresses; docs/FAQ.md explains
how to protect it then. Needs the extra `demo` (gradio).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys

from vild_cli.arguments import add_precision_argument, fraction, positive_int, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--words", default="", help="initial words of the page; see demo.py")
    parser.add_argument("--examples", nargs="+", default=[], help="example images to offer")
    parser.add_argument("--confidence-threshold", type=fraction, default=0.3, help="0.3 by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name of the page, such as that of a reverse proxy; may be repeated",
    )
    parser.add_argument("--port", type=positive_int, default=7860)
    parser.add_argument("--browser", action="store_true", help="open it in a browser")
    parser.add_argument("--max-upload-mb", type=positive_int, default=20)
    parser.add_argument("--max-megapixels", type=positive_int, default=50)
    parser.add_argument("--max-words", type=positive_int, default=1000)
    add_precision_argument(parser, "auto")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args()
    try:
        from vild.web.page import run_page
    except ImportError as error:
        raise ValueError(error) from None

    with contextlib.suppress(KeyboardInterrupt):
        run_page(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
