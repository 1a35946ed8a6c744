"""The model's own parts: classifier, losses, fusion, exact selection, box head.

Everything here takes tensors and plain values; nothing reads a configuration.
"""

from vild.modeling.box_head import EmbeddingHead, ViLDBoxHead
from vild.modeling.classifier import TextClassifier
from vild.modeling.fusion import fuse_scores
from vild.modeling.losses import classification_loss, distillation_loss
from vild.modeling.selection import select_detections

__all__ = [
    "EmbeddingHead",
    "TextClassifier",
    "ViLDBoxHead",
    "classification_loss",
    "distillation_loss",
    "fuse_scores",
    "select_detections",
]
