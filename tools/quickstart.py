#!/usr/bin/env python
"""`make quickstart`: the paper's experiment on `shapes`, from scratch to a result page.

Each stage is a command of this project, which is printed so that you can repeat it. Rerun the
command to resume after an interruption; finished stages are skipped.
Exit code: 0, or 1 if a stage failed or the result does not show ViLD's gain, or 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from shapes_experiment.pipeline import Pipeline
from shapes_experiment.quick import IMAGES, ROWS, quick_pipeline, quick_stages
from vild.data import positive_int
from vild.engine.progress import shown_time
from vild.engine.stages import Stage, StageRunner, run_or_exit

OUTPUT = Path("output/quickstart")
PAGE = OUTPUT / "index.html"
FIRST_PAGE = OUTPUT / "first.html"


def build_stages(pipeline: Pipeline) -> list[Stage]:
    """Return all stages, in order."""
    stages = quick_stages(pipeline)
    clip = next(n for n, stage in enumerate(stages) if stage.name == "clip")
    stages.insert(clip + 1, first_page_stage(pipeline))
    return [*stages, page_stage(pipeline, stages)]


def first_page_stage(pipeline: Pipeline) -> Stage:
    """Return the stage that shows, before the long training, what CLIP alone detects."""
    return Stage(
        "first_page",
        f"write a first page to look at meanwhile, {FIRST_PAGE}: what CLIP alone finds",
        (
            *("tools/result_page.py", "--dataset", f"{pipeline.data}_val"),
            *("--out", str(FIRST_PAGE), "--title", "CLIP on cropped regions, on two cores"),
            *("--run", f"{ROWS['clip']}={pipeline.folder / 'clip'}"),
        ),
        (FIRST_PAGE,),
        ("clip",),
        seconds=10,
    )


def page_stage(pipeline: Pipeline, stages: list[Stage]) -> Stage:
    """Return the stage that writes the page."""
    runs = (f"{label}={pipeline.folder / name}" for name, label in ROWS.items())
    weights = pipeline.folder / "ensemble" / "model_final.pth"
    return Stage(
        "page",
        "write the result page",
        (
            *("tools/result_page.py", "--dataset", f"{pipeline.data}_val", "--out", str(PAGE)),
            *("--title", "ViLD on two cores: what the quickstart found"),
            *(word for run in runs for word in ("--run", run)),
            *("--config-file", "configs/shapes/vild_ensemble.yaml", "--weights", str(weights)),
            *("--regions", str(pipeline.folder / "embeddings" / f"{pipeline.data}_val")),
            *("--stages", str(OUTPUT / "stages"), *pipeline.options),
        ),
        (PAGE,),
        tuple(stage.name for stage in stages),
        seconds=25,
    )


def verdict(pipeline: Pipeline) -> tuple[bool, str]:
    """Return whether the ensemble beats its text head on novel classes, and a sentence on it."""
    novel = {name: pipeline.figures(name)["APr"] for name in ("both_heads", "text_head")}
    holds = novel["both_heads"] > novel["text_head"]
    return holds, (
        f"AP of novel classes: ViLD-ensemble {novel['both_heads']:.1f}, its text head alone "
        f"{novel['text_head']:.1f}: distillation {'helps' if holds else 'does NOT help'}."
    )


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=positive_int, nargs=2, metavar=("TRAIN", "VAL"), help="how many"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of every configuration")
    args = parser.parse_args()
    images = tuple(args.images) if args.images else IMAGES
    pipeline = quick_pipeline(options=tuple(args.opts), images=images)
    runner = StageRunner(build_stages(pipeline), OUTPUT / "stages")
    begin = time.monotonic()
    worked = run_or_exit(runner, "`make quickstart`")
    try:
        holds, sentence = verdict(pipeline)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if worked:
        peak = max(record.peak_bytes for record in runner.records.values())
        took = shown_time(time.monotonic() - begin)
        print(f"\nDone in {took}, with at most {peak / 2**30:.1f} GiB of memory.")
    else:
        print(f"Everything is done: all {len(runner.stages)} stages, and nothing has changed.")
    print(f"{sentence}\nOpen {PAGE.resolve()}")
    if not holds:
        print("error: expected the ensemble above its text head", file=sys.stderr)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
