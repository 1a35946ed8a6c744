#!/usr/bin/env python
"""Train the teacher of ``shapes`` and print its zero-shot accuracy on held-out crops.

The package ships weights written by this command. It takes about ten minutes on one CPU core.

python tools/train_shapes_teacher.py --out-dir output/shapes_teacher
python tools/train_shapes_teacher.py --evaluate-only
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import positive_int, tool_parser
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.embeddings import Teacher

CONFIG = "open_clip_config.json"
LOOSE = 0.3  # maximum error of an edge; the mean IoU is then 0.57, as for typical proposals


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--out-dir", type=Path, default=Path("output/shapes_teacher"))
    parser.add_argument("--iterations", type=positive_int, default=3000)
    parser.add_argument(
        "--scenes", type=positive_int, default=8000, help="images to cut crops from"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary-seed", type=int, default=0, help="classes to evaluate on")
    parser.add_argument("--evaluate-only", action="store_true", help="the shipped weights")
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    from vild.embeddings import build_teacher

    teacher = build_teacher("vild-shapes") if args.evaluate_only else trained(args)
    report(teacher, args.vocabulary_seed)
    return 0


def trained(args: argparse.Namespace) -> Teacher:
    """Train a teacher and write it to ``--out-dir``."""
    import torch

    from experiments.teacher_training import train
    from vild.embeddings.teacher import SHAPES_FOLDER
    from vild.utils.files import atomic_path, require_writable_folder

    require_writable_folder(args.out_dir, "--out-dir")
    with atomic_path(args.out_dir / CONFIG) as temporary:
        shutil.copy(SHAPES_FOLDER / CONFIG, temporary)
    start = time.perf_counter()
    teacher = train(args.out_dir.absolute(), args.iterations, args.scenes, args.seed)
    print(
        f"trained in {time.perf_counter() - start:.0f} s with {torch.get_num_threads()} "
        f"threads; weights in {args.out_dir}"
    )
    return teacher


def report(teacher: Teacher, vocabulary_seed: int) -> None:
    """Print the zero-shot accuracy over a seed's classes and over all compositions."""
    import numpy as np

    from experiments.teacher_training import (
        draw_crops,
        embed_crops,
        jitter,
        zero_shot_accuracy,
    )
    from vild.data import Vocabulary
    from vild.data.shapes import ALL_COMPOSITIONS, shapes_vocabulary
    from vild.embeddings import embed_vocabulary

    crops = draw_crops("held-out", 2000, seed=vocabulary_seed)
    classes = shapes_vocabulary(vocabulary_seed)
    row_of = {composition: row for row, composition in enumerate(ALL_COMPOSITIONS)}
    rows = [row_of[composition] for composition in classes.compositions]
    everything = Vocabulary.from_names(c.name for c in ALL_COMPOSITIONS)
    text_all = embed_vocabulary(teacher, everything, "vild", synonyms=False).embeddings
    print(f"temperature {teacher.temperature:.4f} (logit scale {1 / teacher.temperature:.1f})")
    novel = [row for row, flag in zip(rows, classes.novel, strict=True) if flag]
    base = [row for row, flag in zip(rows, classes.novel, strict=True) if not flag]
    for kind, wanted in (("novel", novel), ("base", base)):
        exact = crops.only(wanted)
        loose = jitter(exact, LOOSE, np.random.RandomState(0))
        for boxes, keep in (("their own boxes", exact), ("loose boxes", loose)):
            embeddings = embed_crops(teacher, keep)
            for among, order in (
                (f"the {len(rows)} classes", rows),
                (f"all {len(ALL_COMPOSITIONS)} compositions", range(len(ALL_COMPOSITIONS))),
            ):
                text = text_all[list(order)]
                accuracy, count = zero_shot_accuracy(embeddings, keep, text, order)
                print(
                    f"{kind} classes in {boxes} among {among}: {accuracy:.1%} of {count} "
                    "held-out crops"
                )


if __name__ == "__main__":
    sys.exit(main())
