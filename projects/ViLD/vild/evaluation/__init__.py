"""Evaluation: results files, LVIS and open-vocabulary COCO metrics, and a Detectron2 evaluator."""

from typing import Any

from vild.evaluation.coco_metrics import evaluate_coco_open_vocabulary
from vild.evaluation.detections import Detections
from vild.evaluation.encoding import encode_masks
from vild.evaluation.evaluator import OpenVocabularyEvaluator, evaluate_results
from vild.evaluation.ground_truth import GroundTruth
from vild.evaluation.results import ResultsWriter

__all__ = [
    "Detections",
    "GroundTruth",
    "OpenVocabularyEvaluator",
    "ResultsWriter",
    "encode_masks",
    "evaluate_coco_open_vocabulary",
    "evaluate_lvis",
    "evaluate_results",
]


def __getattr__(name: str) -> Any:
    """Import LVIS's metrics at first use: the official package imports matplotlib's pyplot."""
    if name == "evaluate_lvis":
        from vild.evaluation.lvis_metrics import evaluate_lvis

        return evaluate_lvis
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
