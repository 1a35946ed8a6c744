"""Check the values of a configuration, so that mistakes are reported when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from vild.utils.formatting import did_you_mean

# keys by the range of their values
_AT_LEAST_ONE = (
    *("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.VILD.DISTILL.REGIONS"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.BATCH_SIZE_PER_IMAGE"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_MASK_HEAD.CONV_DIM"),
    *("MODEL.FPN.OUT_CHANNELS", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"),
)
_AT_LEAST_ZERO = (
    *("SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.GAMMA"),
    *("SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "TEST.EVAL_PERIOD", "DATALOADER.NUM_WORKERS"),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_MASK_HEAD.NUM_CONV"),
    *("MODEL.VILD.TEMPERATURE", "MODEL.VILD.DISTILL.WEIGHT", "INPUT.MIN_SIZE_TEST"),
)
_FRACTIONS = (
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.VILD.DISTILL.MIN_VISIBLE"),
)
# lists of positive numbers
_POSITIVE = (
    *("MODEL.PIXEL_STD", "INPUT.MIN_SIZE_TRAIN"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
    "MODEL.VILD.TEACHER.CROP_SCALES",
)
# types of list items that cannot be inferred from the defaults: they are empty or not Detectron2's
_TEXTS = (
    *("DATASETS.TRAIN", "DATASETS.TEST"),
    *("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
    *("DATASETS.CUSTOM", "MODEL.FPN.IN_FEATURES"),
)
_NUMBERS = ("MODEL.VILD.FUSION_WEIGHTS", "MODEL.VILD.TEACHER.CROP_SCALES")
PRECISIONS = ("fp16", "bf16")  # values of SOLVER.AMP.PRECISION
_DEPTHS = (18, 34, 50, 101, 152)  # supported by Detectron2's ResNets


def check_ranges(cfg: CfgNode) -> None:
    """Raise for values of the configuration that cannot work.

    Raises:
        ValueError: a value is invalid; the message names the key.
    """
    _check_kinds(cfg)
    for keys, lowest in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for key in keys:
            value = _value(cfg, key)
            if value < lowest:
                raise ValueError(f"expected {key} to be a number of at least {lowest}, got {value}")
    for key in _FRACTIONS:
        value = _value(cfg, key)
        if not 0 <= value <= 1:
            raise ValueError(f"expected {key} to be a number from 0 to 1, got {value}")
    for key in _POSITIVE:
        value = _value(cfg, key)
        if not value or min(_flat(value)) <= 0:
            raise ValueError(f"expected {key} to be numbers above 0, got {value}")
    if cfg.SOLVER.BASE_LR <= 0:
        raise ValueError(f"expected SOLVER.BASE_LR to be above 0, got {cfg.SOLVER.BASE_LR}")
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1 and cfg.TEST.DETECTIONS_PER_IMAGE != -1:
        raise ValueError(
            "expected TEST.DETECTIONS_PER_IMAGE to be at least 1, or -1 for no limit, got "
            f"{cfg.TEST.DETECTIONS_PER_IMAGE}"
        )
    if cfg.SOLVER.AMP.PRECISION not in PRECISIONS:
        raise ValueError(
            f"expected SOLVER.AMP.PRECISION to be one of {PRECISIONS}, got "
            f"{cfg.SOLVER.AMP.PRECISION!r}"
        )
    odd = [step for step in cfg.SOLVER.STEPS if step < 0]
    if odd:
        raise ValueError(f"expected SOLVER.STEPS to be iterations of at least 0, got {odd[0]}")
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        raise ValueError(
            f"expected MODEL.PIXEL_STD to be {len(cfg.MODEL.PIXEL_MEAN)} numbers, as many as "
            f"MODEL.PIXEL_MEAN, got {cfg.MODEL.PIXEL_STD}"
        )
    _check_device(cfg.MODEL.DEVICE)
    _check_parts(cfg)


def _check_kinds(cfg: CfgNode) -> None:
    """Check the types of list items, since Detectron2 only compares the types of whole values."""
    texts, numbers = set(_TEXTS), set(_NUMBERS)
    for key, value in leaves(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected {key} to be a finite number, got {value}")
    for key, default in leaves(get_cfg()):
        value = _value(cfg, key)
        if value is None and default is not None:
            raise ValueError(f"expected {key} to be a {type(default).__name__}, got None")
        if isinstance(default, list | tuple) and default:
            kinds = set(map(type, _flat(default)))
            if kinds == {str}:
                texts.add(key)
            elif kinds <= {int, float}:
                numbers.add(key)
    for key in sorted(texts):
        if not all(isinstance(item, str) for item in _flat(_value(cfg, key))):
            raise ValueError(f"expected {key} to be a list of strings, got {_value(cfg, key)}")
    for key in sorted(numbers):
        if not all(map(_is_number, _flat(_value(cfg, key)))):
            raise ValueError(f"expected {key} to be finite numbers, got {_value(cfg, key)}")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"expected MODEL.DEVICE to be a device of torch (cpu, cuda, cuda:0, ...), got {name!r}"
        ) from None
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ValueError(
                f"expected MODEL.DEVICE to be cpu or a GPU of this machine, which has {count}, got "
                f"{name!r}"
            )


def _check_parts(cfg: CfgNode) -> None:
    """Check the names of the model's parts, and the depth of a ResNet."""
    from detectron2.modeling import (
        ANCHOR_GENERATOR_REGISTRY,
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
    )
    from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
    from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY

    import vild.modeling  # noqa: F401  (registers the project's parts; here, since it is large)

    for key, registry in {
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    }.items():
        name = _value(cfg, key)
        # Detectron2 handles these two names without the registry
        if name not in registry and name not in ("", "PrecomputedProposals"):
            hint = did_you_mean(name, [known for known, _ in registry])
            raise ValueError(
                f"expected {key} to be a registered part of the model, got {name!r}."
                f"{hint and ' ' + hint} For a part of your own, import the module that registers it"
            )
    if "resnet" in cfg.MODEL.BACKBONE.NAME and cfg.MODEL.RESNETS.DEPTH not in _DEPTHS:
        raise ValueError(
            f"expected MODEL.RESNETS.DEPTH to be one of {_DEPTHS}, got {cfg.MODEL.RESNETS.DEPTH}"
        )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _flat(values: Any) -> Iterator[Any]:
    """Yield the items of nested lists and tuples; a scalar is a single item."""
    if not isinstance(values, list | tuple):
        yield values
        return
    for item in values:
        yield from _flat(item)


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full key and the value of everything in a configuration but its nodes."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(getitem, key.split("."), cfg)
