"""The detector: classifier, losses, score fusion, selection of detections, box and RoI heads.

Only the ``from_config`` methods read the configuration. Importing this package registers
``ViLDRCNN``, ``ViLDROIHeads``, ``ViLDBoxHead`` and the parts of ``vild.modeling.official`` with
Detectron2.

To add a backbone or another part, write its module here, with Detectron2's registry as a decorator,
and import it below: then every tool registers it.
"""

import vild.modeling.official  # noqa: F401  (registers the official architecture)
from vild.modeling.box_head import EmbeddingHead, Projection, ViLDBoxHead
from vild.modeling.classifier import TextClassifier
from vild.modeling.fusion import fuse_scores
from vild.modeling.losses import classification_loss, distillation_loss
from vild.modeling.meta_arch import ImagesWithRegions, ViLDRCNN
from vild.modeling.output_layers import ViLDOutputLayers
from vild.modeling.roi_heads import OptionalMaskROIHeads, ViLDROIHeads
from vild.modeling.selection import select_detections, select_from_chunks
from vild.modeling.text_embeddings import load_text_embeddings, with_text_embeddings
from vild.modeling.variants import VARIANTS, Variant, find_variant

__all__ = [
    "VARIANTS",
    "EmbeddingHead",
    "ImagesWithRegions",
    "OptionalMaskROIHeads",
    "Projection",
    "TextClassifier",
    "Variant",
    "ViLDBoxHead",
    "ViLDOutputLayers",
    "ViLDRCNN",
    "ViLDROIHeads",
    "classification_loss",
    "distillation_loss",
    "find_variant",
    "fuse_scores",
    "load_text_embeddings",
    "select_detections",
    "select_from_chunks",
    "with_text_embeddings",
]
