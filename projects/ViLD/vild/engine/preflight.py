"""Preflight checks, which report problems with a run's inputs before anything slow starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.config import check_ranges
from vild.data import Vocabulary, require_split
from vild.engine.loading import build_test_proposals, is_vild
from vild.evaluation.evaluator import EvaluationProtocol
from vild.modeling import load_text_embeddings


def check_before_training(cfg: CfgNode, resume: bool = False) -> None:
    """Check the inputs of a training run and its evaluations before it starts.

    The stores of the training set are checked by :func:`vild.engine.build_train_loader`, and
    checkpoints when they are loaded, both before the first step.

    Args:
        cfg: configuration; its datasets are registered.
        resume: whether to continue from a checkpoint in ``OUTPUT_DIR`` if there is one, so that
            ``MODEL.WEIGHTS`` is not needed.

    Raises:
        ValueError: a number is out of range; a split is not registered, has no annotations or has
            other classes than the model; text embeddings or proposals are missing or do not match;
            or ``MODEL.WEIGHTS`` does not exist.
    """
    check_ranges(cfg)
    if not cfg.DATASETS.TRAIN:
        raise ValueError("expected a training set in DATASETS.TRAIN, got none")
    for name in cfg.DATASETS.TRAIN:
        require_split(name, "a registered split in DATASETS.TRAIN")
    check_test_sets(cfg)
    check_classes(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    check_test_proposals(cfg)
    if not (resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").is_file()):
        _check_weights(cfg.MODEL.WEIGHTS)


def check_test_sets(cfg: CfgNode) -> None:
    """Check that every split of ``DATASETS.TEST`` is registered and can be evaluated.

    Raises:
        ValueError: a split is not registered, or its metadata or annotations are missing or
            unusable for its evaluation.
    """
    for name in cfg.DATASETS.TEST:
        require_split(name, "a registered split in DATASETS.TEST")
        if not EvaluationProtocol.from_dataset(name).read().images:
            raise ValueError(f"expected images in {name}, got none: there is nothing to evaluate")


def check_test_proposals(cfg: CfgNode) -> None:
    """Check the precomputed proposals of every split of ``DATASETS.TEST``, if they are used.

    Raises:
        ValueError: see :func:`vild.engine.loading.build_test_proposals`.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        for name in cfg.DATASETS.TEST:
            build_test_proposals(cfg, name, DatasetCatalog.get(name))


def check_classes(cfg: CfgNode, splits: Sequence[str]) -> None:
    """Check that the model and the splits have the same classes in the same order.

    Args:
        cfg: configuration. Class-agnostic detectors (one class) accept any training split.
        splits: registered names.

    Raises:
        ValueError: number, names or order of the classes differ, or the text embeddings cannot be
            read.
    """
    names = {split: MetadataCatalog.get(split).get("thing_classes") for split in splits}
    for name, classes in names.items():
        if not classes:
            raise ValueError(f"expected a split with object classes, got none in {name!r}")
    if is_vild(cfg):
        text = load_text_embeddings(cfg)
        for name, classes in names.items():
            text.check_classes(classes, f"the dataset {name}")
            if cfg.MODEL.VILD.ZERO_SHOT and name in cfg.DATASETS.TRAIN:
                _check_novel(name, text.vocabulary)
        return
    number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name, classes in names.items():
        if len(classes) != number and (number != 1 or name in cfg.DATASETS.TEST):
            raise ValueError(
                f"expected MODEL.ROI_HEADS.NUM_CLASSES to be {len(classes)}, the number of classes "
                f"of {name}, got {number}"
            )


def _check_novel(split: str, vocabulary: Vocabulary) -> None:
    """Raise ValueError unless text embeddings and split have the same novel classes."""
    flags = MetadataCatalog.get(split).get("novel") or vocabulary.novel
    for name, own, given in zip(vocabulary.names, flags, vocabulary.novel, strict=True):
        if bool(own) != given:
            kinds = ("novel", "base") if own else ("base", "novel")
            raise ValueError(
                f"expected {name!r} to be {kinds[0]}, as in {split}, got {kinds[1]} in the text "
                f"embeddings: create them again with --vocabulary {split}"
            )


def _check_weights(weights: str) -> None:
    if weights and "://" not in weights and not Path(weights).is_file():
        raise ValueError(
            f"expected MODEL.WEIGHTS to name an existing checkpoint, got {weights}: no such file. "
            "Leave it empty ('') for random weights"
        )
