"""The command line of train_net.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from vild.data import positive_float
from vild.evaluation.ground_truth import TASKS
from vild.precision import add_precision_argument


def training_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments and this project's own."""
    parser = default_argument_parser()
    parser.add_argument(
        "--resume-from", metavar="FILE", help="go on from this checkpoint of OUTPUT_DIR"
    )
    parser.add_argument(
        "--timeout",
        type=positive_float,
        default=30.0,
        metavar="MINUTES",
        help="how long processes wait for each other",
    )
    parser.add_argument(
        "--zero-shot",
        action=argparse.BooleanOptionalAction,
        help="train on base classes alone (default of the ViLD configurations), or on all",
    )
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval", type=_tasks, metavar="bbox segm", help="what to evaluate; all that there is"
    )
    group.add_argument("--out", metavar="FILE", help="write detections as json (COCO's format)")
    group.add_argument(
        "--show-dir", metavar="DIR", help="write pictures of detections beside the ground truth"
    )
    group.add_argument(
        "--vocabulary-from",
        metavar="FILE",
        help="detect the classes of this vocabulary file (embedded by MODEL.VILD.TEACHER), or of "
        "this .safetensors file of text embeddings",
    )
    add_precision_argument(group, "fp32")
    group.add_argument(
        "--eval-results", metavar="FILE", help="evaluate these detections, without a model"
    )
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; ``--eval bbox segm`` may stand before overrides."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == "--eval":
            tasks = []
            while rest and rest[0] in TASKS:
                tasks.append(rest.pop(0))
            joined[-1] = f"--eval={','.join(tasks)}"
    parser = training_parser()
    args = parser.parse_args(joined)
    if args.precision != "fp32" and not args.eval_only:
        parser.error(
            f"expected --eval-only beside --precision {args.precision}: training takes its own "
            "from SOLVER.AMP.ENABLED and SOLVER.AMP.PRECISION"
        )
    return args


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(text.split(","))
    if not set(tasks) <= set(TASKS):
        raise argparse.ArgumentTypeError(f"expected bbox, segm or both, got {text!r}")
    return tasks
