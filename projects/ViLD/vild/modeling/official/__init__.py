"""The architecture of the official code (TensorFlow), for its released checkpoints.

Differences from Detectron2, by module; the ``_lsj`` recipes use ``backbone`` and the mask head:

- ``backbone``: max pooling with ``SAME`` padding, FPN with a normalisation per level, strided P6;
- ``rpn``: inclusive anchors, shared convolutions with a normalisation per level;
- ``boxes``: inclusive coordinates for clipping and NMS;
- ``regions``: single-sample bilinear crops, from P2 to P6;
- ``roi_heads``: ViLD's heads with these parts, and a mask head with normalisation in every layer;
- ``meta_arch``: resizing as in TensorFlow 1, padding to a square;
- ``variables``, ``conversion``: mapping of the official variables to this model.

Importing this package registers the parts with Detectron2.
"""

from vild.modeling.official.backbone import build_official_resnet_fpn_backbone
from vild.modeling.official.conversion import OfficialModel, convert_variables, official_text
from vild.modeling.official.meta_arch import OfficialViLDRCNN, resize
from vild.modeling.official.regions import RegionCrops
from vild.modeling.official.roi_heads import OfficialMaskHead, OfficialROIHeads
from vild.modeling.official.rpn import InclusiveAnchorGenerator, OfficialRPN, OfficialRPNHead

__all__ = [
    "InclusiveAnchorGenerator",
    "OfficialMaskHead",
    "OfficialModel",
    "OfficialROIHeads",
    "OfficialRPN",
    "OfficialRPNHead",
    "OfficialViLDRCNN",
    "RegionCrops",
    "build_official_resnet_fpn_backbone",
    "convert_variables",
    "official_text",
    "resize",
]
