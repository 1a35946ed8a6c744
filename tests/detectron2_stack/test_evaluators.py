"""Every evaluator that Detectron2 v0.6 broke on: perfect predictions must score 100."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image

from .rectangles import write_lvis_json
from .test_data import write_voc


def perfect_predictions(evaluator: DatasetEvaluator, records: list[dict]) -> dict:
    """Feed the annotations back as predictions and return the evaluator's figures."""
    evaluator.reset()
    for record in records:
        size = (record["height"], record["width"])
        annotations = record["annotations"]
        instances = Instances(size)
        boxes = [
            BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS)
            for a in annotations
        ]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        polygons = PolygonMasks([a["segmentation"] for a in annotations])
        instances.pred_masks = BitMasks.from_polygon_masks(polygons, *size).tensor
        instances.scores = torch.linspace(0.9, 0.8, len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.fixture
def name() -> str:
    return f"stack_{uuid.uuid4().hex}"


def test_coco_evaluation(tmp_path: Path, name: str) -> None:
    json_file = write_lvis_json(tmp_path)
    text = json_file.read_text(encoding="utf-8")
    # COCO's format asks for a file name and a crowd flag, LVIS's does not
    text = text.replace('"coco_url": "none://images/', '"file_name": "')
    text = text.replace('"segmentation"', '"iscrowd": 0, "segmentation"')
    json_file.write_text(text, encoding="utf-8")
    register_coco_instances(name, {}, str(json_file), str(tmp_path / "images"))
    records = DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, ("bbox", "segm"), distributed=False, output_dir=str(tmp_path))
    results = perfect_predictions(evaluator, records)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP-rectangle_1"] == pytest.approx(100)


def test_lvis_evaluation(tmp_path: Path, name: str) -> None:
    json_file = write_lvis_json(tmp_path)
    name = f"{name}_v1"  # Detectron2 reads LVIS's version off the name
    register_lvis_instances(name, {}, str(json_file), f"{tmp_path}/")
    records = DatasetCatalog.get(name)
    evaluator = LVISEvaluator(name, ("bbox", "segm"), distributed=False)
    results = perfect_predictions(evaluator, records)
    for task in ("bbox", "segm"):
        for key in ("AP", "APr", "APc", "APf"):
            assert results[task][key] == pytest.approx(100), (task, key)


def test_pascal_voc_evaluation(tmp_path: Path, name: str) -> None:
    write_voc(tmp_path)
    MetadataCatalog.get(name).set(
        dirname=str(tmp_path), split="val", thing_classes=["cat"], year=2012
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    instances = Instances((40, 50))
    instances.pred_boxes = Boxes(torch.tensor([[9.0, 9, 30, 30]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    for image_id in ("000001", "000002"):
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_semantic_segmentation_evaluation(tmp_path: Path, name: str) -> None:
    truth = np.zeros((6, 8), np.uint8)
    truth[:, 4:] = 1
    Image.fromarray(truth).save(tmp_path / "truth.png")
    record = {"file_name": "image.png", "sem_seg_file_name": str(tmp_path / "truth.png")}
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["left", "right"], ignore_label=255)
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    scores = torch.nn.functional.one_hot(torch.tensor(truth).long(), 2).permute(2, 0, 1)
    evaluator.process([record], [{"sem_seg": scores.float()}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
