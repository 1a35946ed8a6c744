"""The project's own configuration keys, all below ``MODEL.VILD``."""

from __future__ import annotations

from detectron2.config import CfgNode

from vild.data import register_custom


def add_vild_config(cfg: CfgNode) -> None:
    """Add the keys of this project, with their defaults, to a Detectron2 configuration."""
    cfg.MODEL.VILD = CfgNode()
    # yaml files that describe data sets of the user's own (see datasets/README.md)
    cfg.MODEL.VILD.DATASETS = []


def register_datasets(cfg: CfgNode) -> list[str]:
    """Register the data sets that ``MODEL.VILD.DATASETS`` lists.

    Returns:
        the names that are registered now.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    return [name for file in cfg.MODEL.VILD.DATASETS for name in register_custom(file)]
