"""Inference and presentation: the predictor, drawn detections, tables and curves of runs."""

from vild.inference.drawing import draw_detections, draw_ground_truth, side_by_side
from vild.inference.pictures import PictureWriter
from vild.inference.predictor import OpenVocabularyPredictor
from vild.inference.results import instances_from_results, read_results_by_picture

__all__ = [
    "OpenVocabularyPredictor",
    "PictureWriter",
    "draw_detections",
    "draw_ground_truth",
    "instances_from_results",
    "read_results_by_picture",
    "side_by_side",
]
