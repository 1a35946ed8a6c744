"""The model in Detectron2's predictor, evaluation loop and test-time augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import LVISEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.utils.visualizer import Visualizer

from vild.engine import build_test_loader

from .. import small_shapes
from ..making import mapped_image, text_embeddings, tiny_config

TEXT = text_embeddings(["crow", "owl", "kite"], novel=["owl"], temperature=0.05)


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Return a configuration with the weights of a model with a larger vocabulary."""
    torch.manual_seed(1)
    other = tiny_config(tmp_path, "ensemble", text_embeddings(7), "MODEL.WEIGHTS", "")
    DetectionCheckpointer(build_model(other), str(tmp_path)).save("model")
    cfg = tiny_config(tmp_path, "ensemble", TEXT)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.DATASETS.TEST = ()
    return cfg


def test_default_predictor_and_visualizer(cfg: CfgNode) -> None:
    predictor = DefaultPredictor(cfg)
    image = mapped_image(side=90)["image"].permute(1, 2, 0).numpy()
    found = predictor(image)["instances"]
    assert 0 < len(found) <= 20
    assert found.pred_masks.shape == (len(found), 90, 90)
    shown = Visualizer(image, predictor.model.roi_heads.metadata)
    shown = shown.draw_instance_predictions(found).get_image()
    assert shown.shape == (90, 90, 3)
    assert not np.array_equal(shown, image)


def test_inference_on_dataset(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 2)
    cfg = small_shapes.config(tmp_path, "ensemble", TEST__DETECTIONS_PER_IMAGE=20)
    torch.manual_seed(0)
    model = build_model(cfg)
    evaluator = LVISEvaluator(small_shapes.SEEN, ("bbox", "segm"), False, str(tmp_path))
    results = inference_on_dataset(model, build_test_loader(cfg, small_shapes.SEEN), evaluator)
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "APr", "APc", "APf"} <= set(results[task])
        assert 0 <= results[task]["AP"] < 50


def test_time_augmentation(cfg: CfgNode) -> None:
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    inputs = [{"image": mapped_image()["image"], "height": 96, "width": 96}]
    with torch.no_grad():
        plain = model(inputs)[0]["instances"]
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = [96], False
        same = GeneralizedRCNNWithTTA(cfg, model)(inputs)[0]["instances"]
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = [80, 96, 112], True
        augmented = GeneralizedRCNNWithTTA(cfg, model)(inputs)[0]["instances"]
    # a single view, the image itself, gives identical detections
    assert torch.equal(same.scores, plain.scores)
    assert torch.equal(same.pred_classes, plain.pred_classes)
    assert torch.allclose(same.pred_boxes.tensor, plain.pred_boxes.tensor, atol=1e-3)
    assert 0 < len(augmented) <= 20
    assert augmented.pred_masks.shape == (len(augmented), 96, 96)
    assert augmented.pred_classes.max() < 3
    assert model.roi_heads.mask_on  # which GeneralizedRCNNWithTTA turns off temporarily
