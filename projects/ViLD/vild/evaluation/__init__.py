"""Evaluation: results files, LVIS and open-vocabulary COCO metrics, and a Detectron2 evaluator.

The LVIS metrics are imported from ``vild.evaluation.lvis_metrics`` where they are used, because the
official package imports matplotlib's pyplot.
"""

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
    "evaluate_results",
]
