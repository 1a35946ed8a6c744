"""Comparison of a trained detector's region embeddings with the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode
from tqdm import tqdm

from vild.checkpoint import load_weights
from vild.data import find_split
from vild.embeddings import EmbeddingStore
from vild.engine.loading import build_test_loader
from vild.engine.trainer import Trainer
from vild.evaluation.similarity import SimilarityMeter, match_objects
from vild.modeling import ViLDROIHeads


def compare_regions(
    cfg: CfgNode, dataset_name: str, store: EmbeddingStore, limit: int | None = None
) -> tuple[SimilarityMeter, SimilarityMeter]:
    """Compare the region embeddings of teacher and detector with the text embeddings.

    Both use the same regions: those of the store that cover an annotated object.

    Args:
        cfg: configuration of a detector with ViLD's RoI heads; ``MODEL.WEIGHTS`` is its checkpoint.
        dataset_name: a registered dataset in which all classes are annotated.
        store: the teacher's region embeddings of this dataset.
        limit: maximum number of images; None uses all.

    Returns:
        The teacher's figures and the detector's.

    Raises:
        ValueError: the model has other RoI heads, the checkpoint does not match it, or the store is
            of another split or teacher.
    """
    dataset = find_split(dataset_name)
    store.check_split(dataset_name, dataset)
    model = Trainer.build_model(cfg)
    heads = model.roi_heads
    if not isinstance(heads, ViLDROIHeads):
        raise ValueError(
            f"expected a detector with ViLDROIHeads, got {type(heads).__name__}, which does not "
            "compute region embeddings"
        )
    load_weights(model, cfg.MODEL.WEIGHTS)
    model.eval()
    text, novel = heads.box_predictor.classifier.text.cpu(), heads.vocabulary.novel
    teacher, student = SimilarityMeter(text, novel), SimilarityMeter(text, novel)
    if store.dimension != text.shape[1]:
        raise ValueError(
            f"{store.folder} has embeddings of dimension {store.dimension}, the text embeddings "
            f"have {text.shape[1]}: expected both from the same teacher"
        )
    records = {record["image_id"]: record for record in dataset}
    loader = build_test_loader(cfg, dataset_name)
    total = min(len(loader), limit or len(loader))
    for batch in tqdm(islice(loader, limit), total=total, unit="img", disable=None):
        for mapped in batch:
            regions = store[mapped["image_id"]]
            rows, classes = match_objects(regions.boxes, *_objects(records[mapped["image_id"]]))
            if not len(rows):
                continue
            teacher.add(regions.embeddings[rows], classes)
            with torch.no_grad():
                images = model.preprocess_image([mapped])
                scale = images.image_sizes[0][1] / mapped["width"]
                boxes = Boxes(regions.boxes[rows] * scale).to(model.device)
                features = model.backbone(images.tensor)
                student.add(heads.embed_regions(features, [boxes]).cpu(), classes)
    return teacher, student


def _objects(record: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes (M, 4) xyxy float32 and classes (M,) of a record, without crowds."""
    own = [a for a in record.get("annotations", ()) if not a.get("iscrowd")]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in own]
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([a["category_id"] for a in own], dtype=torch.int64),
    )
