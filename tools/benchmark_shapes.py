#!/usr/bin/env python
"""`make benchmark-shapes`: all methods of the paper on `shapes`, mean and deviation of 3 seeds.

python tools/benchmark_shapes.py
python tools/benchmark_shapes.py --seeds 1 --only text vild ensemble
python tools/benchmark_shapes.py --quick --seeds 0 1 2 8 9 --out-dir output/benchmark_quick

A seed determines the dataset (classes, images), the initial weights and the training order.
The settings were chosen on seeds 0 and 1. Rerun the command to resume after an interruption.
Writes results.json and results.md to --out-dir.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from vild_cli.arguments import positive_int, tool_parser
from vild_cli.errors import one_line_errors

# the rows of experiments/methods.py, in the same order
NAMES = (
    *("oracle", "supervised", "supervised_base", "clip", "text", "text_clip", "image"),
    *("vild_0", "vild_0.1", "vild", "vild_1", "ensemble"),
    *("text_head", "image_head", "image_for_novel"),
)


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--quick", action="store_true", help="the rows and settings of `make quickstart`"
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="commands to run in parallel; one per core by default",
    )
    parser.add_argument("--out-dir", type=Path, default=Path("output/benchmark_shapes"))
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of every configuration"
    )
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"expected --seeds of at least 0, each once, got {args.seeds}")
    from experiments.claims import claims_to_markdown, judge
    from experiments.methods import METHODS
    from experiments.pipeline import Pipeline
    from experiments.progress import format_time
    from experiments.quick import ROWS, quick_pipeline, quick_stages
    from experiments.stages import StageRunner, run_or_exit
    from experiments.table import collect, to_markdown
    from vild.utils.files import atomic_path, require_writable_folder

    require_writable_folder(args.out_dir, "--out-dir")
    pipelines = []
    for seed in args.seeds:
        folder, prefix = args.out_dir / f"seed{seed}", f"seed{seed}_"
        if args.quick:
            pipelines.append(quick_pipeline(folder, seed, tuple(args.opts), prefix))
        else:
            # boxes only: the claims are about classes, and masks changed no figure of ViLD by more
            # than half a point on seed 0
            options = ("MODEL.MASK_ON", "False", *args.opts)
            pipelines.append(Pipeline(folder, seed, options, prefix))
    rows = [name for name in NAMES if name in args.only]
    stages = []
    for pipeline in pipelines:
        if args.quick:
            stages += quick_stages(pipeline)
            continue
        stages += pipeline.prepare()
        for name in rows:
            stages += METHODS[name].stages(pipeline, name)
    begin = time.monotonic()
    run_or_exit(StageRunner(stages, args.out_dir / "stages", args.jobs))
    labels = ROWS if args.quick else {name: METHODS[name].label for name in rows}
    results = collect(pipelines, list(labels))
    text = to_markdown(results, labels)
    if not args.quick:
        text += f"\n{claims_to_markdown(judge(results))}"
    for name, contents in (
        ("results.json", json.dumps(results, indent=1) + "\n"),
        ("results.md", text),
    ):
        with atomic_path(args.out_dir / name) as temporary:
            temporary.write_text(contents, encoding="utf-8")
    print(text)
    print(f"{format_time(time.monotonic() - begin)}; wrote {args.out_dir}/results.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
