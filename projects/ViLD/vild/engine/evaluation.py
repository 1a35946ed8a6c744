"""Evaluate a checkpoint through the trainer; the metrics themselves are in vild.evaluation.

Options: another vocabulary, a file of the detections, images of them, and the precision.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn

from vild.checkpoint import AtomicCheckpointer, load_weights
from vild.checkpoint.checkpointer import IMAGE_HEAD
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings, build_teacher, embed_vocabulary
from vild.engine.preflight import check_test_proposals, check_test_sets
from vild.engine.trainer import Trainer, tasks_of
from vild.modeling import ViLDROIHeads, find_variant
from vild.precision import autocast, resolve_precision
from vild.reporting import ImageWriter

logger = logging.getLogger(__name__)


def evaluate(
    cfg: CfgNode,
    *,
    trainer: type[DefaultTrainer] = Trainer,
    tasks: Sequence[str] | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    vocabulary: str | None = None,
    precision: str = "fp32",
    resume: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on ``DATASETS.TEST``.

    The model, the loaders and the evaluators are those of the trainer (its ``build_model``,
    ``build_test_loader``, ``build_evaluator`` and ``test``), as in the evaluations during training.

    Args:
        cfg: configuration.
        trainer: this project's trainer, or a subclass that overrides some of these methods.
        tasks: ``bbox``, ``segm`` or both; None: those that the model supports.
        out: json of the detections; with several test sets, the name of each is added to it.
        show_dir: folder for drawn detections.
        vocabulary: file of the classes to detect instead of the configuration's; see
            :func:`read_vocabulary`.
        precision: see :func:`vild.precision.resolve_precision`; recorded with the metrics.
        resume: use the last checkpoint of ``OUTPUT_DIR`` if there is one.

    Returns:
        In the main process, metrics by task (and by dataset, if there are several).

    Raises:
        ValueError: there is no test set, or one is not registered; the checkpoint is missing,
            incomplete or of another model; the model has no masks to evaluate; the classes are not
            those of the dataset; the precision is unknown; or the trainer's ``build_evaluator``
            does not take the options that these arguments need.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("expected a test set in DATASETS.TEST to evaluate on, got none")
    precision = resolve_precision(precision, cfg.MODEL.DEVICE)
    check_test_sets(cfg)
    cfg = _for_tasks(cfg, tasks, resume)
    model = trainer.build_model(cfg)
    last = AtomicCheckpointer(model, cfg.OUTPUT_DIR)
    weights = cfg.MODEL.WEIGHTS
    if resume and last.has_checkpoint():
        weights = last.get_checkpoint_file()
    # CLIP on crops needs a checkpoint only for masks
    trained = find_variant(cfg.MODEL.VILD.VARIANT).trained
    unused = () if trained else ("roi_heads.box_", IMAGE_HEAD)
    if weights or trained:
        load_weights(model, weights, unused)
    if vocabulary is not None:
        model.roi_heads.set_vocabulary(read_vocabulary(cfg, vocabulary))
    for name in cfg.DATASETS.TEST:
        _require_classes(model, name)
    check_test_proposals(cfg)
    logger.info("Precision: %s", precision)
    evaluators = []
    for name in cfg.DATASETS.TEST:
        options = _options(cfg, tasks, _named(out, name, len(cfg.DATASETS.TEST)), precision)
        evaluator = _build_evaluator(trainer, cfg, name, options)
        if show_dir is not None:
            evaluator = DatasetEvaluators([evaluator, _Images(show_dir, name)])
        evaluators.append(evaluator)
    with autocast(precision, cfg.MODEL.DEVICE):
        return trainer.test(cfg, model, evaluators)


def _options(
    cfg: CfgNode, tasks: Sequence[str] | None, out: str | None, precision: str
) -> dict[str, Any]:
    """Return the arguments of ``build_evaluator`` that differ from its defaults."""
    options: dict[str, Any] = {}
    if tasks is not None and set(tasks) != set(tasks_of(cfg)):
        options["tasks"] = tuple(tasks)
    if out is not None:
        options["out"] = out
    if precision != "fp32":
        options["precision"] = precision
    return options


def _build_evaluator(
    trainer: type[DefaultTrainer], cfg: CfgNode, name: str, options: dict[str, Any]
) -> DatasetEvaluator:
    if options:
        try:
            inspect.signature(trainer.build_evaluator).bind(cfg, name, **options)
        except TypeError:
            raise ValueError(
                f"expected {trainer.__name__}.build_evaluator to accept {', '.join(options)} (of "
                "--eval, --out or --precision), got a method without: add **options to its "
                "parameters and pass them to super().build_evaluator"
            ) from None
    return trainer.build_evaluator(cfg, name, **options)


def read_vocabulary(cfg: CfgNode, file: str) -> TextEmbeddings:
    """Read the classes of a file and embed them, unless the file contains their embeddings.

    Args:
        cfg: configuration; ``MODEL.VILD.TEACHER`` is the teacher.
        file: ``.safetensors`` of tools/extract_text_embeddings.py, or a file for
            :meth:`vild.data.Vocabulary.load`.

    Raises:
        ValueError: the file is missing or of another type, or the teacher cannot be loaded.
    """
    if Path(file).suffix.lower() == ".safetensors":
        return TextEmbeddings.load(file)
    vocabulary = Vocabulary.load(file)
    names = cfg.MODEL.VILD.TEACHER
    teacher = build_teacher(names.MODEL, names.PRETRAINED, cfg.MODEL.DEVICE)
    return embed_vocabulary(teacher, vocabulary)


class _Images(DatasetEvaluator):
    """An evaluator that only draws the detections of each image to a file."""

    def __init__(self, folder: str, dataset_name: str) -> None:
        self.folder, self.dataset_name = folder, dataset_name

    def reset(self) -> None:
        # here, so that the records of only one dataset are in memory at a time
        self.writer = ImageWriter(
            self.folder,
            Vocabulary.from_dataset(self.dataset_name),
            DatasetCatalog.get(self.dataset_name),
        )

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for mapped, output in zip(inputs, outputs, strict=True):
            self.writer.write(mapped, output["instances"].to("cpu"))


def _for_tasks(cfg: CfgNode, tasks: Sequence[str] | None, resume: bool) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    if not cfg.MODEL.WEIGHTS and not resume:
        if find_variant(cfg.MODEL.VILD.VARIANT).trained:
            raise ValueError(
                "expected a checkpoint to evaluate: MODEL.WEIGHTS FILE, or --resume for the last "
                "one of OUTPUT_DIR"
            )
        logger.info("evaluating boxes only: masks need a checkpoint of the proposal detector")
        cfg.MODEL.MASK_ON = False
    if tasks is not None and "segm" in tasks and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "expected a model with masks for --eval segm: MODEL.MASK_ON: True, and a checkpoint"
        )
    if tasks is not None and "segm" not in tasks:
        cfg.MODEL.MASK_ON = False
    cfg.freeze()
    return cfg


def _require_classes(model: nn.Module, dataset_name: str) -> None:
    heads = model.roi_heads
    if not isinstance(heads, ViLDROIHeads):
        return
    names = tuple(MetadataCatalog.get(dataset_name).thing_classes)
    if heads.vocabulary.names != names:
        own = heads.vocabulary.names
        raise ValueError(
            f"expected a model that detects the {len(names)} classes of {dataset_name} "
            f"({', '.join(names[:3])}, ...) in this order, got {len(own)} classes "
            f"({', '.join(own[:3])}, ...): set MODEL.VILD.TEXT_EMBEDDINGS or --vocabulary-from to "
            "text embeddings of the dataset's classes"
        )


def _named(out: str | None, dataset_name: str, count: int) -> str | None:
    if out is None or count == 1:
        return out
    path = Path(out)
    return str(path.with_name(f"{path.stem}_{dataset_name}{path.suffix}"))
