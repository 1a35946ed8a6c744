"""The project's own configuration keys, all below ``MODEL.VILD``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from vild.data import register_custom


def add_vild_config(cfg: CfgNode) -> None:
    """Add the keys of this project, with their defaults, to a Detectron2 configuration.

    Sections are those of the paper (arXiv 2104.13921). The sizes of the box head are Detectron2's
    own keys, ``MODEL.ROI_BOX_HEAD``; its ``NORM`` goes for every layer of the head.
    """
    cfg.MODEL.VILD = CfgNode()
    # "text" (ViLD-text), "image" (ViLD-image), "vild" (one head with both losses) or "ensemble"
    # (ViLD-ensemble, two heads); sec. 3.2 to 3.4. For evaluation also "clip" (CLIP on cropped
    # regions) and "text_clip" (ViLD-text + CLIP), the baselines of sec. 4
    cfg.MODEL.VILD.VARIANT = "ensemble"
    # file of tools/extract_text_embeddings.py: names, novel flags, embeddings, temperature
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = ""
    # tau, which cosines are divided by (sec. 3.2); 0: the teacher's own, from the text embeddings
    cfg.MODEL.VILD.TEMPERATURE = 0.0
    # whether training knows base classes alone: novel ones are left out of the softmax
    cfg.MODEL.VILD.ZERO_SHOT = True
    # ensemble: weight of the text head's probabilities for base and for novel classes; lambda and
    # 1 - lambda in sec. 3.4
    cfg.MODEL.VILD.FUSION_WEIGHTS = [2 / 3, 1 / 3]
    # whether a score is the geometric mean of class probability and objectness; off in the paper
    cfg.MODEL.VILD.OBJECTNESS = False
    # yaml files that describe data sets of the user's own (see datasets/README.md)
    cfg.MODEL.VILD.DATASETS = []
    # large-scale jitter: smallest scale, largest scale, side of the square picture in pixels
    # (appendix); the square is padded with MODEL.PIXEL_MEAN. [] for Detectron2's
    # INPUT.MIN_SIZE_TRAIN
    cfg.MODEL.VILD.LARGE_SCALE_JITTER = []
    # the teacher where it runs in training: model and weights as open_clip names them, and how a
    # crop becomes a square ("stretch", "pad" or "clip"), which a store has to agree with
    cfg.MODEL.VILD.TEACHER = ["ViT-B-32", "openai"]
    cfg.MODEL.VILD.CROP_MODE = "stretch"
    # distillation (sec. 3.3): where the teacher's region embeddings come from, "store" (computed
    # once by tools/extract_image_embeddings.py) or "online" (by the frozen teacher, in training)
    cfg.MODEL.VILD.DISTILL = CfgNode()
    cfg.MODEL.VILD.DISTILL.SOURCE = "store"
    # folder of the store for the training set: embeddings, or proposals where SOURCE is "online"
    cfg.MODEL.VILD.DISTILL.STORE = ""
    # w, weight of the distillation loss (sec. 3.3); 0.5 for R50, 1 and 2 for R152
    cfg.MODEL.VILD.DISTILL.WEIGHT = 0.5
    # most regions a picture (appendix; the official code's 300)
    cfg.MODEL.VILD.DISTILL.REGIONS = 300
    # where an image has more: "uniform" draws REGIONS of the visible ones anew at every step;
    # "first" takes the store's first ones, those of the highest objectness, and drops the invisible
    # ones of these (the official vild_parser.py, clip_or_pad_to_fixed_size)
    cfg.MODEL.VILD.DISTILL.DRAW = "uniform"
    # regions of which augmentation leaves less than this fraction are not distilled
    cfg.MODEL.VILD.DISTILL.MIN_VISIBLE = 0.5


def read_config(file: str | os.PathLike[str], options: Sequence[str] = ()) -> CfgNode:
    """Detectron2's configuration with this project's keys, from a yaml file.

    Args:
        file: the yaml, with what it names as ``_BASE_``.
        options: KEY VALUE pairs that override it.

    Raises:
        ValueError: a file that cannot be read, a key that is not there, a value of another type.
    """
    cfg = get_cfg()
    add_vild_config(cfg)
    try:
        cfg.merge_from_file(os.fspath(file))
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise ValueError(f"expected a configuration in {file}: {_reason(error)}") from None
    override_config(cfg, options)
    return cfg


def override_config(cfg: CfgNode, options: Sequence[str]) -> None:
    """Detectron2's ``merge_from_list``, with an error that says what is wrong.

    Args:
        cfg: changed in place.
        options: KEY VALUE pairs.

    Raises:
        ValueError: a key that is not there, a value of another type, or a key without a value.
    """
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"expected KEY VALUE pairs of the configuration, got {list(options)}: {_reason(error)}"
        ) from None


def check_ranges(cfg: CfgNode) -> None:
    """Refuse numbers of the configuration with which nothing can run.

    Raises:
        ValueError: names the key.
    """
    for keys, lowest in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for key in keys:
            value = _value(cfg, key)
            if not lowest <= value < math.inf:  # true for NaN
                raise ValueError(f"expected {key} to be a number of at least {lowest}, got {value}")
    for key in _FRACTIONS:
        value = _value(cfg, key)
        if not 0 <= value <= 1:
            raise ValueError(f"expected {key} to be a number from 0 to 1, got {value}")
    if cfg.SOLVER.BASE_LR <= 0:
        raise ValueError(f"expected SOLVER.BASE_LR to be above 0, got {cfg.SOLVER.BASE_LR}")
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1 and cfg.TEST.DETECTIONS_PER_IMAGE != -1:
        raise ValueError(
            "expected TEST.DETECTIONS_PER_IMAGE to be at least 1, or -1 for no limit, got "
            f"{cfg.TEST.DETECTIONS_PER_IMAGE}"
        )
    odd = [step for step in cfg.SOLVER.STEPS if step < 0]
    if odd:
        raise ValueError(f"expected SOLVER.STEPS to be iterations of at least 0, got {odd[0]}")


# keys by the range of their values
_AT_LEAST_ONE = (
    *("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.VILD.DISTILL.REGIONS"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.BATCH_SIZE_PER_IMAGE"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST"),
)
_AT_LEAST_ZERO = (
    *("SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.GAMMA"),
    *("SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "TEST.EVAL_PERIOD", "DATALOADER.NUM_WORKERS"),
    *("MODEL.VILD.TEMPERATURE", "MODEL.VILD.DISTILL.WEIGHT"),
)
_FRACTIONS = (
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.VILD.DISTILL.MIN_VISIBLE"),
)


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(getitem, key.split("."), cfg)


def use_available_device(cfg: CfgNode) -> None:
    """The CPU instead of Detectron2's default device where this machine has no GPU.

    Args:
        cfg: changed in place, unless ``MODEL.DEVICE`` is another device than the default.
    """
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def _reason(error: Exception) -> str:
    # a KeyError shows its text as a literal
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def register_datasets(cfg: CfgNode) -> list[str]:
    """Register the data sets that ``MODEL.VILD.DATASETS`` lists.

    Returns:
        the names that are registered now.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    return [name for file in cfg.MODEL.VILD.DATASETS for name in register_custom(file)]


def set_zero_shot(cfg: CfgNode, zero_shot: bool) -> None:
    """Train on base classes alone, or on all: the softmax and the training sets.

    Args:
        cfg: changed in place. A training set's name ends on ``_base`` or not accordingly.
        zero_shot: which of the two.
    """
    cfg.MODEL.VILD.ZERO_SHOT = zero_shot
    names = [name.removesuffix("_base") for name in cfg.DATASETS.TRAIN]
    cfg.DATASETS.TRAIN = tuple(f"{name}_base" if zero_shot else name for name in names)


def scale_schedule(cfg: CfgNode, recipe_batch: int, keep: Sequence[str] = ()) -> list[str]:
    """Fit a recipe's schedule to another batch size (linear scaling, Goyal et al. 2017).

    As many pictures are seen as in the recipe: with 1/16 of the batch, 16 times the iterations at
    1/16 of the learning rate.

    Args:
        cfg: changed in place; ``SOLVER.IMS_PER_BATCH`` is the batch size that is wanted.
        recipe_batch: the batch size that the schedule was made for.
        keep: keys such as ``SOLVER.MAX_ITER`` that the user has set and that stay as they are.

    Returns:
        lines for the log: why, and every key that was changed.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch == recipe_batch:
        return []
    ratio = recipe_batch / batch

    def longer(iterations: int) -> int:
        return max(1, round(iterations * ratio)) if iterations > 0 else iterations

    solver = cfg.SOLVER
    wanted = {
        "SOLVER.BASE_LR": solver.BASE_LR / ratio,
        "SOLVER.MAX_ITER": longer(solver.MAX_ITER),
        "SOLVER.STEPS": tuple(longer(step) for step in solver.STEPS),
        "SOLVER.WARMUP_ITERS": longer(solver.WARMUP_ITERS),
        "SOLVER.CHECKPOINT_PERIOD": longer(solver.CHECKPOINT_PERIOD),
        "TEST.EVAL_PERIOD": longer(cfg.TEST.EVAL_PERIOD),
    }
    lines = [f"{batch} pictures a batch instead of the recipe's {recipe_batch}; so"]
    for key, value in wanted.items():
        section, name = key.split(".")
        old = cfg[section][name]
        if key not in keep and old != value:
            cfg[section][name] = value
            lines.append(f"{key}: {_shown(old)} -> {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
