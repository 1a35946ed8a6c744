#!/usr/bin/env python
"""Train or evaluate a detector, like Detectron2's tools/train_net.py.

python projects/ViLD/train_net.py --config-file configs/LVIS/vild_ensemble_r50_fpn_1x.yaml \
        --num-gpus 8 OUTPUT_DIR output/mine
python projects/ViLD/train_net.py --config-file configs/LVIS/vild_ensemble_r50_fpn_1x.yaml \
        --eval-only --out detections.json MODEL.WEIGHTS output/mine/model_final.pth

For a subclass of :class:`vild.engine.Trainer`, write a script that imports this file and calls
``run(parse(sys.argv[1:]), MyTrainer)`` under ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vild_cli.training import parse

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from vild.engine import Trainer

logger = logging.getLogger("vild.train_net")  # a child of the package's logger, which has handlers


def configure(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Build the configuration from file and overrides.

    Returns:
        the configuration; how its schedule was adapted to the batch size, for the log.
    """
    from vild.config import override_config, read_config, scale_schedule, set_zero_shot

    cfg = read_config(args.config_file)
    recipe_batch = cfg.SOLVER.IMS_PER_BATCH
    override_config(cfg, args.opts)
    scaling = scale_schedule(cfg, recipe_batch, keep=args.opts[0::2])
    if args.zero_shot is not None:
        set_zero_shot(cfg, args.zero_shot)
    return cfg, scaling


def prepare(cfg: CfgNode) -> None:
    """Adapt the process and the configuration to each other: datasets, device, memory."""
    from vild.config import register_datasets, use_available_device
    from vild.engine import require_same_config, reuse_freed_memory

    register_datasets(cfg)
    use_available_device(cfg)
    if cfg.MODEL.DEVICE == "cpu":
        reuse_freed_memory()
    require_same_config(cfg)


def begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Freeze the configuration and write it and the log to ``OUTPUT_DIR``."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from vild.engine import report_log_errors_once
    from vild.utils.files import write_errors_named

    cfg.freeze()
    # before default_setup makes the same calls, because the log may be on a full disk; equal calls
    # are cached, others would print every line twice
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="vild")
    report_log_errors_once()
    with write_errors_named(Path(cfg.OUTPUT_DIR, "config.yaml")):
        default_setup(cfg, args)


def main(
    args: argparse.Namespace,
    cfg: CfgNode,
    scaling: list[str],
    trainer_class: type[Trainer] | None = None,
) -> dict[str, Any] | None:
    """Run one process of the job.

    Args:
        args: of :func:`vild_cli.training.parse`.
        cfg: configuration of :func:`configure`.
        scaling: its second result.
        trainer_class: this project's Trainer by default.
    """
    from vild import engine

    trainer_class = trainer_class or engine.Trainer
    prepare(cfg)
    if args.eval_only or args.eval_results:
        begin(cfg, args)
        return evaluate_only(cfg, args, trainer_class)
    resume = args.resume or args.resume_from is not None
    with engine.only_training(cfg.OUTPUT_DIR):
        engine.resolve_seed(cfg, resume)
        begin(cfg, args)
        for line in scaling[1:]:
            logger.info(line)
        engine.check_before_training(cfg, resume)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(args.resume, args.resume_from)
        # the last line before the first step; as a warning if it is not the recipe's schedule
        level = logging.WARNING if scaling else logging.INFO
        logger.log(level, ": ".join([*scaling[:1], trainer.schedule]))
        return trainer.train()


def evaluate_only(
    cfg: CfgNode, args: argparse.Namespace, trainer_class: type[Trainer]
) -> dict[str, Any]:
    """Evaluate a checkpoint, or a file of detections."""
    from vild.engine import check_test_sets, evaluate
    from vild.evaluation import evaluate_results

    if args.eval_results:
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                "expected one dataset in DATASETS.TEST for --eval-results, got "
                f"{tuple(cfg.DATASETS.TEST)}"
            )
        (name,) = cfg.DATASETS.TEST
        check_test_sets(cfg)
        return evaluate_results(name, args.eval_results, args.eval, cfg.OUTPUT_DIR)
    return evaluate(
        cfg,
        trainer=trainer_class,
        tasks=args.eval,
        out=args.out,
        show_dir=args.show_dir,
        vocabulary=args.vocabulary_from,
        precision=args.precision,
        resume=args.resume,
    )


def run(args: argparse.Namespace, trainer_class: type[Trainer] | None = None) -> None:
    """Start the processes of the job, and exit with a message for errors that users can fix.

    Args:
        args: of :func:`vild_cli.training.parse`.
        trainer_class: a trainer defined at the top level of a module; the project's by default.
    """
    from vild.engine import EXIT_CTRL_C, explained, launch

    try:
        cfg, scaling = configure(args)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg, scaling, trainer_class),
            timeout=timedelta(minutes=args.timeout),
            device=cfg.MODEL.DEVICE,
        )
    except KeyboardInterrupt:
        sys.stderr.write("stopped; --resume continues from the last checkpoint\n")
        sys.exit(EXIT_CTRL_C)
    except Exception as error:
        message = explained(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


if __name__ == "__main__":
    run(parse(sys.argv[1:]))  # parsed before torch and Detectron2 are imported, which takes seconds
