"""Detectron2's own LVIS Mask R-CNN trains, saves, resumes and evaluates on this stack."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_lvis_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import LVISEvaluator

from .rectangles import write_lvis_json

NAME = "stack_mask_rcnn_v1"


class _Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> LVISEvaluator:
        return LVISEvaluator(dataset_name, ("bbox", "segm"), distributed=False)


def _config(output: Path, iterations: int) -> CfgNode:
    cfg = get_cfg()
    yaml = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(model_zoo.get_config_file(yaml))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(output)),
            *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96),
            *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", ()),
            # from random weights: nothing frozen, and a norm that does not wait for statistics
            *("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "GN", "SEED", 1),
            # a tenth of the parameters
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 128, "MODEL.FPN.OUT_CHANNELS", 64),
            *("SOLVER.BASE_LR", 0.001, "SOLVER.WARMUP_ITERS", 0),
            # so little training gives low scores: keep them all, of few proposals
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 5),
            *("TEST.DETECTIONS_PER_IMAGE", 20),
        ]
    )
    return cfg


def test_mask_rcnn_trains_saves_resumes_and_evaluates(tmp_path: Path) -> None:
    register_lvis_instances(
        NAME, {}, str(write_lvis_json(tmp_path / "data", 2)), f"{tmp_path}/data/"
    )
    trainer = _Trainer(_config(tmp_path / "run", 2))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    assert trainer.model.roi_heads.num_classes == 1203
    trainer.train()
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])
    trained = trainer.model.state_dict()
    assert not torch.equal(
        before["roi_heads.box_predictor.cls_score.weight"],
        trained["roi_heads.box_predictor.cls_score.weight"],
    )

    resumed = _Trainer(_config(tmp_path / "run", 3))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, trained[key], rtol=0, atol=0, msg=key)
    resumed.train()
    assert resumed.iter == 3
    results = _Trainer.test(resumed.cfg, resumed.model)
    for task in ("bbox", "segm"):
        assert 0 <= results[task]["AP"] <= 100
        assert {"APr", "APc", "APf"} <= results[task].keys()


def test_unknown_checkpoint_is_refused(tmp_path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    with pytest.raises(AssertionError, match="not found"):
        checkpointer.load(str(tmp_path / "no_such.pth"))
