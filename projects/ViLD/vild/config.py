"""The project's own configuration keys, all below ``MODEL.VILD``."""

from __future__ import annotations

from detectron2.config import CfgNode

from vild.data import register_custom


def add_vild_config(cfg: CfgNode) -> None:
    """Add the keys of this project, with their defaults, to a Detectron2 configuration."""
    cfg.MODEL.VILD = CfgNode()
    # yaml files that describe data sets of the user's own (see datasets/README.md)
    cfg.MODEL.VILD.DATASETS = []
    # distillation (section 3.3): where the teacher's region embeddings come from, "store" (computed
    # once by tools/extract_image_embeddings.py) or "online" (by the frozen teacher, in training)
    cfg.MODEL.VILD.DISTILL = CfgNode()
    cfg.MODEL.VILD.DISTILL.SOURCE = "store"
    # folder of the store for the training set: embeddings, or proposals where SOURCE is "online"
    cfg.MODEL.VILD.DISTILL.STORE = ""
    # most regions a picture (appendix; the official code's 300)
    cfg.MODEL.VILD.DISTILL.REGIONS = 300
    # regions of which augmentation leaves less than this fraction are not distilled
    cfg.MODEL.VILD.DISTILL.MIN_VISIBLE = 0.5


def register_datasets(cfg: CfgNode) -> list[str]:
    """Register the data sets that ``MODEL.VILD.DATASETS`` lists.

    Returns:
        the names that are registered now.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    return [name for file in cfg.MODEL.VILD.DATASETS for name in register_custom(file)]
