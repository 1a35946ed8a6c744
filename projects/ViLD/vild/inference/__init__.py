"""Inference: the predictor, detection in files and videos, and files of named detections."""

from vild.inference.predictor import OpenVocabularyPredictor

__all__ = ["OpenVocabularyPredictor"]
