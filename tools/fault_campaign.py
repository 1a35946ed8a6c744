#!/usr/bin/env python
r"""Inject kills, damaged files, races and full disks into all commands and check the results.

python tools/fault_campaign.py --seed 0 --out report.json
python tools/fault_campaign.py --parts kills,races
python tools/fault_campaign.py --list
python tools/fault_campaign.py --seed 0 --case "kills/text embeddings/random-3"

Runs offline, on two CPU cores. docs/RELIABILITY.md lists the guarantees and the last results.
Exit code: 0, or 1 if a guarantee was broken, or 2 for an error.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from fault_campaign_parts import PARTS
from vild_cli.arguments import tool_parser
from vild_cli.errors import one_line_errors


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default: 0)")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help=f"comma-separated list of {', '.join(PARTS)}; all by default",
    )
    parser.add_argument("--case", action="append", metavar="NAME", help="run only these cases")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run each Nth case")
    parser.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases to run in parallel")
    parser.add_argument("--out", type=Path, help="json report")
    memory = Path("/dev/shm")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=memory if os.access(memory, os.W_OK) else None,
        help="parent of temporary folders; by default in memory, where flushing takes no time",
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    names = tuple(args.case or ())
    parts = {name.partition("/")[0] for name in names} or set(args.parts.split(","))
    if unknown := parts - set(PARTS):
        raise ValueError(
            f"expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
        )
    # before anything imports torch: a process with threads could not be forked
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    os.environ["PYTHONWARNINGS"] = "ignore"
    from fault_campaign_parts.bench import ROOT, prepare
    from fault_campaign_parts.campaign import all_cases, make_bench, run_cases
    from fault_campaign_parts.report import machine, table

    out = args.out.absolute() if args.out else None
    os.chdir(ROOT)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault_campaign_", dir=args.work_dir) as folder:
        bench = prepare(Path(folder) / "bench")
        bench.folder.mkdir()
        make_bench(bench)
        cases = all_cases(bench, tuple(parts), names)[:: args.every]
        if args.list:
            print("\n".join(case.name for case in cases))
            return 0
        results = run_cases(cases, args.seed, args.jobs, Path(folder) / "cases")
    failures = [(result["case"], problem) for result in results for problem in result["problems"]]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = {
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "cpu_minutes": round((usage.ru_utime + usage.ru_stime) / 60, 1),
    }
    print(table(results))
    print(f"\n{len(results)} cases, seed {args.seed}, {times}; {machine()}")
    for name, problem in failures:
        print(f"FAILED {name}: {problem}")
    if names:
        print(
            "\n".join(f"{result['case']}: {note}" for result in results for note in result["notes"])
        )
    if out:
        report = {"seed": args.seed, **times, "machine": machine()}
        out.write_text(json.dumps({**report, "results": results}, indent=1), encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
