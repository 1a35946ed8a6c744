"""The inputs of a training are checked before anything slow starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.config import check_ranges
from vild.data import register_shapes
from vild.embeddings import TextEmbeddings
from vild.engine import check_before_training, evaluate

from .. import small_shapes
from ..making import text_embeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preflight")
    small_shapes.make(made, 3)
    return made


@pytest.fixture
def cfg(folder: Path) -> CfgNode:
    small_shapes.register(folder)
    return small_shapes.config(folder, "ensemble")


def test_a_sound_configuration_passes(cfg: CfgNode) -> None:
    check_before_training(cfg)
    cfg.DATASETS.TEST = ()
    check_before_training(cfg)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("DATASETS.TRAIN", (), r"a training set in DATASETS\.TRAIN, got none"),
        ("DATASETS.TRAIN", ("small_shapes_bas",), r"DATASETS\.TRAIN.*'small_shapes_base'"),
        ("DATASETS.TEST", ("small_shapes_sen",), r"DATASETS\.TEST.*'small_shapes_seen'"),
        ("DATASETS.TEST", ("lvis_v1_val",), "the file does not exist"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 7, "NUM_CLASSES: 7 classes, got 60 in"),
        ("MODEL.VILD.TEXT_EMBEDDINGS", "gone.safetensors", r"gone\.safetensors"),
        ("MODEL.VILD.TEXT_EMBEDDINGS", "", r"expected the path .*TEXT_EMBEDDINGS, got an empty"),
        ("MODEL.WEIGHTS", "gone.pth", r"MODEL\.WEIGHTS to name an existing checkpoint.*gone\.pth"),
        ("MODEL.LOAD_PROPOSALS", True, r"expected DATASETS\.PROPOSAL_FILES_TEST"),
    ],
)
def test_what_a_training_lacks_is_named(cfg: CfgNode, key: str, value: Any, complaint: str) -> None:
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=complaint):
        check_before_training(cfg)


def test_the_classes_of_the_test_set_have_to_be_the_models(cfg: CfgNode, tmp_path: Path) -> None:
    names = MetadataCatalog.get(small_shapes.SEEN).thing_classes
    text_embeddings(names[::-1], 64).save(tmp_path / "text.safetensors")
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="differ: row 0"):
        check_before_training(cfg)
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 59
    with pytest.raises(ValueError, match="NUM_CLASSES to be 60"):
        check_before_training(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATASETS.TEST = 1, ()
    check_before_training(cfg)


def test_novel_classes_have_to_be_those_of_the_training_set(cfg: CfgNode, tmp_path: Path) -> None:
    text = TextEmbeddings.load(cfg.MODEL.VILD.TEXT_EMBEDDINGS)
    words = text.vocabulary
    for novel in ((False,) * 60, (True,) * 60):
        flagged = replace(words, novel=novel)
        replace(text, vocabulary=flagged).save(tmp_path / "text.safetensors")
        cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(tmp_path / "text.safetensors")
        row = words.novel.index(not novel[0])
        with pytest.raises(ValueError, match=f"expected '{words.names[row]}' to be"):
            check_before_training(cfg)
        cfg.MODEL.VILD.ZERO_SHOT = False
        check_before_training(cfg)
        cfg.MODEL.VILD.ZERO_SHOT = True


def test_test_proposals_have_to_be_of_the_test_set(cfg: CfgNode, folder: Path) -> None:
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TEST = (str(folder / "proposals"),)
    check_before_training(cfg)  # other annotations of the same images
    cfg.DATASETS.TEST, cfg.MODEL.ROI_HEADS.NAME = ("shapes_seed77_val",), "StandardROIHeads"
    names = register_shapes(77, folder / "shapes")
    with pytest.raises(ValueError, match=r"a store of 'shapes_seed77_val'.*'small_shapes_base'"):
        check_before_training(cfg)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("names", [(), ("small_shapes_sen",)])
def test_an_evaluation_needs_a_registered_test_set(cfg: CfgNode, names: tuple[str, ...]) -> None:
    cfg.DATASETS.TEST = names
    with pytest.raises(ValueError, match=r"expected a .* in DATASETS\.TEST"):
        evaluate(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.MAX_ITER", -1),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.BASE_LR", float("nan")),
        ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.STEPS", (-3,)),
        ("SOLVER.WARMUP_ITERS", -1),
        ("TEST.DETECTIONS_PER_IMAGE", 0),
        ("DATALOADER.NUM_WORKERS", -1),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 2.0),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0),
        ("MODEL.VILD.DISTILL.WEIGHT", float("nan")),
    ],
)
def test_numbers_out_of_range_are_refused(cfg: CfgNode, key: str, value: Any) -> None:
    check_ranges(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"expected {key} to be .* got"):
        check_ranges(cfg)
