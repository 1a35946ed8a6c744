#!/usr/bin/env python
"""Verify stores of proposals or embeddings completely and report every fault.

python tools/verify_store.py proposals/lvis_v1_val embeddings/lvis_v1_train_base

Checks the manifest, every checksum and the shapes of the arrays, and in every record that boxes lie
inside the image and are sorted, values are finite and embeddings L2-normalised.
Exit code: 0 if nothing is wrong, otherwise 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vild_cli.arguments import tool_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("store", type=Path, nargs="+")
    return parser


def kind_of(folder: Path) -> str:
    """Return the kind of a store; empty if its manifest does not state it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(manifest["spec"]["kind"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from vild.embeddings import store as embeddings
    from vild.proposals import store as proposals
    from vild.storage import store_faults

    checks = {
        embeddings.KIND: embeddings.embedding_faults,
        proposals.KIND: proposals.proposal_faults,
    }
    wrong = 0
    for folder in args.store:
        kind = kind_of(folder)
        faults = store_faults(folder, checks.get(kind), progress=sys.stderr.isatty())
        wrong += len(faults)
        print(f"{folder}: {kind or 'unknown'} store, {len(faults) or 'no'} faults")
        for fault in faults:
            print(f"  {fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
