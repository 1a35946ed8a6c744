#!/usr/bin/env python
"""Train or evaluate a detector, like Detectron2's tools/train_net.py.

python projects/ViLD/train_net.py --config-file configs/LVIS/vild_ensemble_r50_fpn_1x.yaml \
        --num-gpus 8 OUTPUT_DIR output/mine
python projects/ViLD/train_net.py --config-file configs/LVIS/vild_ensemble_r50_fpn_1x.yaml \
        --eval-only --out detections.json MODEL.WEIGHTS output/mine/model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vild_cli.training import parse

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def configure(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Build the configuration from file, overrides and machine; also return notes to log."""
    from vild.config import (
        override_config,
        read_config,
        register_datasets,
        scale_schedule,
        set_zero_shot,
        use_available_device,
    )
    from vild.engine import require_same_config, reuse_freed_memory

    cfg = read_config(args.config_file)
    recipe_batch = cfg.SOLVER.IMS_PER_BATCH
    override_config(cfg, args.opts)
    notes = scale_schedule(cfg, recipe_batch, keep=args.opts[0::2])
    if args.zero_shot is not None:
        set_zero_shot(cfg, args.zero_shot)
    register_datasets(cfg)
    use_available_device(cfg)
    if cfg.MODEL.DEVICE == "cpu":
        reuse_freed_memory()
    require_same_config(cfg)
    return cfg, notes


def begin(cfg: CfgNode, args: argparse.Namespace, notes: list[str]) -> None:
    """Freeze the configuration and write it and the log to ``OUTPUT_DIR``."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from vild.data.files import write_errors_named
    from vild.engine import report_log_errors_once

    cfg.freeze()
    # before default_setup creates the same loggers, because their file may be on a full disk
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="vild")
    report_log_errors_once()
    with write_errors_named(Path(cfg.OUTPUT_DIR, "config.yaml")):
        default_setup(cfg, args)
    for line in notes:
        logger.info(line)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job."""
    from vild.engine import Trainer, check_before_training, only_training, resolve_seed

    cfg, notes = configure(args)
    if args.eval_only or args.eval_results:
        begin(cfg, args, notes)
        return evaluate_only(cfg, args)
    resume = args.resume or args.resume_from is not None
    with only_training(cfg.OUTPUT_DIR):
        resolve_seed(cfg, resume)
        begin(cfg, args, notes)
        check_before_training(cfg, resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(args.resume, args.resume_from)
        return trainer.train()


def evaluate_only(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a checkpoint, or a file of detections."""
    from vild.engine import check_test_sets, evaluate
    from vild.evaluation import evaluate_results

    if args.eval_results:
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                "expected one dataset in DATASETS.TEST beside --eval-results, got "
                f"{tuple(cfg.DATASETS.TEST)}"
            )
        (name,) = cfg.DATASETS.TEST
        check_test_sets(cfg)
        return evaluate_results(name, args.eval_results, args.eval, cfg.OUTPUT_DIR)
    return evaluate(
        cfg,
        tasks=args.eval,
        out=args.out,
        show_dir=args.show_dir,
        vocabulary=args.vocabulary_from,
        precision=args.precision,
        resume=args.resume,
    )


if __name__ == "__main__":
    # before torch and Detectron2 are imported, which takes seconds
    arguments = parse(sys.argv[1:])
    from vild.config import read_config
    from vild.engine import EXIT_CTRL_C, explained, launch

    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
            timeout=timedelta(minutes=arguments.timeout),
            device=read_config(arguments.config_file, arguments.opts).MODEL.DEVICE,
        )
    except KeyboardInterrupt:
        sys.stderr.write("stopped; --resume goes on from the last checkpoint\n")
        sys.exit(EXIT_CTRL_C)
    except Exception as error:
        message = explained(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
