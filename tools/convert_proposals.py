#!/usr/bin/env python
r"""Convert proposals from and to Detectron2's pickle files (DATASETS.PROPOSAL_FILES_TRAIN).

python tools/convert_proposals.py --from-detectron2 theirs.pkl --allow-pickle \
    --split lvis_v1_val --out-dir proposals
python tools/convert_proposals.py --to-detectron2 ours.pkl --store proposals/lvis_v1_val

A pickle can run code when read, so --allow-pickle is required, and only the types that the format
needs are built. Exit code: 0, or 3 if images have no proposals, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from vild_cli.arguments import add_data_arguments, tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from-detectron2", type=Path, metavar="PKL", help="read this file")
    way.add_argument("--to-detectron2", type=Path, metavar="PKL", help="write this file")
    parser.add_argument("--allow-pickle", action="store_true", help="read the pickle; required")
    parser.add_argument("--split", help="registered dataset of the imported proposals")
    parser.add_argument("--out-dir", type=Path, default=Path("proposals"))
    parser.add_argument("--store", type=Path, help="store to export")
    add_data_arguments(parser)
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    if args.from_detectron2 and not args.split:
        raise ValueError("expected --split with --from-detectron2, got none")
    if args.to_detectron2 and not args.store:
        raise ValueError("expected --store with --to-detectron2, got none")
    import vild
    from vild.data import find_split, register_from_arguments
    from vild.proposals import ProposalStore, read_detectron2_proposals, write_detectron2_proposals
    from vild.proposals.conversion import import_proposals

    if args.to_detectron2:
        store = ProposalStore(args.store)
        write_detectron2_proposals(args.to_detectron2, ((i, *own) for i, own in store.items()))
        print(f"wrote {args.to_detectron2}: {store.rows} proposals of {len(store)} images")
        return 0
    register_from_arguments(args)
    records, folder = find_split(args.split), args.out_dir / args.split
    proposals = read_detectron2_proposals(args.from_detectron2, args.allow_pickle)
    made_by = {"vild": vild.__version__}
    dropped, foreign = import_proposals(
        args.from_detectron2, proposals, args.split, records, folder, made_by
    )
    store = ProposalStore(folder)
    print(
        f"{folder}: {store.rows} proposals of {len(store)} images; ignored: {dropped} boxes "
        f"without area in their image, {foreign} images of other splits; without proposals: "
        f"{len(store.failed)} images"
    )
    return 3 if store.failed else 0


if __name__ == "__main__":
    sys.exit(main())
