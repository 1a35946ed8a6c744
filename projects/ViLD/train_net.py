#!/usr/bin/env python
"""Train and evaluate, in the manner of Detectron2's tools/train_net.py.

python projects/ViLD/train_net.py --config-file configs/Base-ViLD-R50-FPN.yaml \
        --num-gpus 1 DATASETS.TRAIN "('my_train',)" OUTPUT_DIR output/mine
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from vild.config import add_vild_config, register_datasets, scale_schedule
from vild.engine import build_test_loader, build_train_loader, launch, reuse_freed_memory


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's evaluators, and an optimizer that is saved."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the data set's metadata names (``coco`` or ``lvis``)."""
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        evaluators = {"coco": COCOEvaluator, "lvis": LVISEvaluator}
        if kind not in evaluators:
            raise ValueError(
                f"{dataset_name} asks for the evaluator {kind!r}; expected one of "
                f"{sorted(evaluators)}. Set evaluator_type in its metadata."
            )
        return evaluators[kind](dataset_name, output_dir=output_folder or cfg.OUTPUT_DIR)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Training pictures with the regions and proposals that the configuration asks for."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Pictures of a test set, with precomputed proposals where they are asked for."""
        return build_test_loader(cfg, dataset_name)

    def state_dict(self) -> dict[str, Any]:
        """The trainer's state; v0.6 leaves out the optimizer's (upstream issue 4110)."""
        state = super().state_dict()
        state.setdefault("_trainer", self._trainer.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


def setup(args: argparse.Namespace) -> CfgNode:
    """Configuration from the file, the overrides and the machine."""
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_file(args.config_file)
    recipe_batch = cfg.SOLVER.IMS_PER_BATCH
    cfg.merge_from_list(args.opts)
    scaled = scale_schedule(cfg, recipe_batch, keep=args.opts[0::2])
    register_datasets(cfg)
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE == "cuda":
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        reuse_freed_memory()
    cfg.freeze()
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="vild")
    for line in scaled:
        logger.info(line)
    return cfg


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
