"""The command line of train_net.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vild_cli.arguments import add_precision_argument, positive_float
from vild_cli.ranks import launched_place

TASKS = ("bbox", "segm")


def training_parser() -> argparse.ArgumentParser:
    """Return a parser for Detectron2's arguments and those of this project."""
    parser = detectron2_parser()
    parser.add_argument(
        "--resume-from", metavar="FILE", help="resume from this checkpoint of OUTPUT_DIR"
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
        help="train on base classes only (default of the ViLD configurations), or on all classes",
    )
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval",
        type=_tasks,
        metavar="bbox segm",
        help="tasks to evaluate; by default all that the model supports",
    )
    group.add_argument("--out", metavar="FILE", help="write detections as json (COCO's format)")
    group.add_argument(
        "--show-dir", metavar="DIR", help="write images of detections next to the ground truth"
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


def detectron2_parser() -> argparse.ArgumentParser:
    """Return the parser of ``detectron2.engine.default_argument_parser()`` without importing it."""
    program = sys.argv[0]
    parser = argparse.ArgumentParser(
        epilog=f"""
Examples:

Run on single machine:
    $ {program} --num-gpus 8 --config-file cfg.yaml

Change some config options:
    $ {program} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

Run on multiple machines:
    (machine0)$ {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Whether to attempt to resume from the checkpoint directory. "
        "See documentation of `DefaultTrainer.resume_or_load()` for what it means.",
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)"
    )
    # one port per user, so that processes left over from an earlier run are noticed
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="initialization URL for pytorch distributed backend. See "
        "https://pytorch.org/docs/stable/distributed.html for details.",
    )
    parser.add_argument(
        "opts",
        help="""
Modify config options at the end of the command. For Yacs configs, use
space-separated "PATH.KEY VALUE" pairs.
For python-based LazyConfig, use "path.key=value".
        """.strip(),
        default=None,
        nargs=argparse.REMAINDER,
    )
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; ``--eval bbox segm`` may be followed by overrides."""
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
            f"expected --eval-only with --precision {args.precision}: training uses "
            "SOLVER.AMP.ENABLED and SOLVER.AMP.PRECISION"
        )
    place = launched_place()
    machines = args.num_machines if place is None else place.machines
    given = place is not None and place.url is not None  # torchrun's address
    if machines > 1 and not given and args.dist_url == parser.get_default("dist_url"):
        # every machine but the first would wait for itself until the timeout
        parser.error(
            f"expected --dist-url tcp://FIRST_MACHINE:PORT, the same on all {machines} machines, "
            "got its default, the address of this machine"
        )
    return args


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(text.split(","))
    if not set(tasks) <= set(TASKS):
        raise argparse.ArgumentTypeError(f"expected bbox, segm or both, got {text!r}")
    return tasks
