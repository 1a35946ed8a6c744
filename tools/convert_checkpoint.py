#!/usr/bin/env python
r"""Convert a checkpoint to safetensors, which contains only weights.

python tools/convert_checkpoint.py model_final.pth weights.safetensors
python tools/convert_checkpoint.py theirs.pth weights.safetensors --trusted

All other commands refuse a checkpoint that would run code when read. --trusted reads such a file
once, CODE INCLUDED: use it only for files whose source you trust. The training state (optimizer,
iteration) is omitted, so training can start from the result, but not resume. Exit code: 0, or 2 for
an error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vild_cli.arguments import tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help=".pth, .pt, .bin, .pkl, .pyth, ...")
    parser.add_argument("out", type=Path, help="file to write (.safetensors)")
    parser.add_argument(
        "--trusted", action="store_true", help="run the code that the checkpoint asks for"
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    if args.out.suffix != ".safetensors":
        raise ValueError(f"expected the output to end in .safetensors, got {args.out}")
    from vild.checkpoint.files import read_checkpoint, write_weights
    from vild.storage.errors import UnsafeFileError

    try:
        count = write_weights(args.out, read_checkpoint(args.checkpoint, args.trusted))
    # unpickling damaged data may raise almost any exception
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        if isinstance(error, UnsafeFileError):
            reason += ". If you trust its source, add --trusted"
        raise ValueError(f"{args.checkpoint} could not be converted: {kind}{reason}") from None
    print(f"wrote {args.out}: {count} arrays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
