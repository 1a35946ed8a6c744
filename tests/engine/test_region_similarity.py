"""Comparison of a detector's region embeddings with the teacher's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from vild.embeddings import EmbeddingStore
from vild.engine.region_similarity import compare_regions

from .. import small_shapes


def test_teacher_and_detector_see_the_same_regions(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 3)
    torch.manual_seed(0)
    cfg = small_shapes.config(tmp_path, "vild", MODEL__WEIGHTS=str(tmp_path / "model.pth"))
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    store = EmbeddingStore(tmp_path / "store")
    teacher, student = compare_regions(cfg, small_shapes.SEEN, store)
    assert teacher.counts.tolist() == student.counts.tolist()
    assert 10 < int(teacher.counts.sum()) <= store.rows
    # the shipped teacher knows its classes; the detector's weights are random
    assert teacher.accuracy(novel=False) > 60
    assert student.accuracy(novel=False) < 30
    fewer, _ = compare_regions(cfg, small_shapes.SEEN, store, limit=1)
    assert 0 < int(fewer.counts.sum()) < int(teacher.counts.sum())


def test_refuses_a_detector_without_region_embeddings(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 2)
    cfg = small_shapes.config(tmp_path, "text", MODEL__ROI_HEADS__NAME="StandardROIHeads")
    with pytest.raises(ValueError, match="expected a detector with ViLDROIHeads"):
        compare_regions(cfg, small_shapes.SEEN, EmbeddingStore(tmp_path / "store"))
