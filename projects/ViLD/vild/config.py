"""Configuration keys of this project, and functions that read and change configurations.

Most keys are in ``MODEL.VILD``; others are in Detectron2's nodes that they affect.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from vild.config_checks import check_ranges, leaves
from vild.data import register_custom

__all__ = [
    "add_vild_config",
    "check_ranges",
    "override_config",
    "read_config",
    "register_datasets",
    "scale_schedule",
    "set_zero_shot",
    "use_available_device",
]

# keys of earlier versions, and how to write them now
_RENAMED = {
    "MODEL.VILD.TEACHER": "MODEL.VILD.TEACHER.MODEL and MODEL.VILD.TEACHER.PRETRAINED, the first "
    "and the second item of the list",
    "MODEL.VILD.CROP_MODE": "MODEL.VILD.TEACHER.CROP_MODE",
    "MODEL.VILD.DATASETS": "DATASETS.CUSTOM",
    "MODEL.VILD.LARGE_SCALE_JITTER": "INPUT.LARGE_SCALE_JITTER.MIN_SCALE, .MAX_SCALE and .SIZE, "
    "the items of the list, with .ENABLED: True (False for an empty list)",
}


def add_vild_config(cfg: CfgNode) -> None:
    """Add the keys of this project, with their defaults, to a Detectron2 configuration.

    Sections refer to the paper (arXiv 2104.13921). The box head is configured by Detectron2's keys
    in ``MODEL.ROI_BOX_HEAD``; its ``NORM`` applies to every layer of the head.
    """
    cfg.MODEL.VILD = CfgNode()
    # "text" (ViLD-text), "image" (ViLD-image), "vild" (one head with both losses; all three in
    # sec. 3.3) or "ensemble" (ViLD-ensemble, two heads; sec. 3.4). For evaluation also "clip" (CLIP
    # on cropped regions, sec. 3.2) and "text_clip" (ViLD-text + CLIP, sec. 4)
    cfg.MODEL.VILD.VARIANT = "ensemble"
    # output of tools/extract_text_embeddings.py: names, novel flags, embeddings, temperature
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = ""
    # tau, the divisor of cosines (sec. 3.3); 0: the teacher's, from the text embeddings
    cfg.MODEL.VILD.TEMPERATURE = 0.0
    # whether training uses only base classes: novel ones are left out of the softmax
    cfg.MODEL.VILD.ZERO_SHOT = True
    # ensemble: weights of the text head's probabilities for base and for novel classes; lambda
    # and 1 - lambda in sec. 3.4
    cfg.MODEL.VILD.FUSION_WEIGHTS = [2 / 3, 1 / 3]
    # whether a score is the geometric mean of class probability and objectness; off in the paper
    cfg.MODEL.VILD.OBJECTNESS = False
    # the frozen teacher (sec. 3.2), which embeds words, and regions if a source below is "online":
    # open_clip's names of its model and weights
    cfg.MODEL.VILD.TEACHER = CfgNode()
    cfg.MODEL.VILD.TEACHER.MODEL = "ViT-B-32"
    cfg.MODEL.VILD.TEACHER.PRETRAINED = "openai"
    # how its crops are made square ("stretch", "pad" or "clip"), and their sizes relative to the
    # region (1x and 1.5x in sec. 3.2); a store must have been made with the same mode and scales
    cfg.MODEL.VILD.TEACHER.CROP_MODE = "stretch"
    cfg.MODEL.VILD.TEACHER.CROP_SCALES = [1.0, 1.5]
    # "clip" and "text_clip": source of the region embeddings at test time, "store" (the stores in
    # DATASETS.PROPOSAL_FILES_TEST contain them) or "online" (the teacher computes them)
    cfg.MODEL.VILD.TEACHER.SOURCE_TEST = "store"
    # distillation (sec. 3.3): source of the teacher's region embeddings in training, "store"
    # (computed once by tools/extract_image_embeddings.py) or "online" (by the teacher)
    cfg.MODEL.VILD.DISTILL = CfgNode()
    cfg.MODEL.VILD.DISTILL.SOURCE = "store"
    # SOURCE "store": folder of the training set's region embeddings
    cfg.MODEL.VILD.DISTILL.STORE = ""
    # SOURCE "online": folder of the training set's proposals, the regions to embed
    cfg.MODEL.VILD.DISTILL.PROPOSALS = ""
    # w, weight of the distillation loss (sec. 3.3); 0.5 for R50, 1 and 2 for R152
    cfg.MODEL.VILD.DISTILL.WEIGHT = 0.5
    # maximum number of regions per image (appendix; 300 in the official code)
    cfg.MODEL.VILD.DISTILL.REGIONS = 300
    # if an image has more: "uniform" samples REGIONS of the visible ones at every step; "first"
    # takes the store's first ones, those of the highest objectness, and drops the invisible ones
    # among them (the official vild_parser.py, clip_or_pad_to_fixed_size)
    cfg.MODEL.VILD.DISTILL.DRAW = "uniform"
    # minimum fraction of a region that must remain after augmentation for it to be distilled
    cfg.MODEL.VILD.DISTILL.MIN_VISIBLE = 0.5
    # yaml files that describe custom datasets (see datasets/README.md)
    cfg.DATASETS.CUSTOM = ()
    # large-scale jitter (appendix) instead of INPUT.MIN_SIZE_TRAIN: the image is resized to a
    # random scale of a square, then cropped or padded (with MODEL.PIXEL_MEAN) to it
    cfg.INPUT.LARGE_SCALE_JITTER = CfgNode()
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = False
    cfg.INPUT.LARGE_SCALE_JITTER.MIN_SCALE = 0.1
    cfg.INPUT.LARGE_SCALE_JITTER.MAX_SCALE = 2.0
    cfg.INPUT.LARGE_SCALE_JITTER.SIZE = 1024  # side of the square in pixels
    # precision of the forward pass in training if Detectron2's SOLVER.AMP.ENABLED is on: "fp16"
    # (Detectron2's AMP, with a gradient scaler, on GPUs) or "bf16" (without a scaler; on Ampere or
    # newer GPUs, and on CPUs)
    cfg.SOLVER.AMP.PRECISION = "fp16"


def read_config(file: str | os.PathLike[str], options: Sequence[str] = ()) -> CfgNode:
    """Return Detectron2's configuration with this project's keys, read from a yaml file.

    Args:
        file: the yaml, with any ``_BASE_`` files: plain values only, since Python tags run code.
        options: KEY VALUE pairs that override it.

    Raises:
        ValueError: an unreadable file, a tag, an unknown key, or a value of the wrong type or
            out of range. The new name of a renamed key is reported.
    """
    cfg = get_cfg()
    add_vild_config(cfg)
    path = os.fspath(file)
    try:
        loaded = cfg.load_yaml_with_base(path, allow_unsafe=False)
        _refuse_old_keys(key for key, _ in leaves(loaded))
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        where = _tag(error) or f"{file}: {_reason(error)}"
        raise ValueError(f"expected plain values in {where}") from None
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise ValueError(f"expected a configuration in {file}: {_reason(error)}") from None
    except (TypeError, AttributeError, RecursionError):  # from Detectron2 and yacs
        raise ValueError(
            f"expected keys and values in {file}, and in _BASE_ the names of files that do not "
            "refer back to it"
        ) from None
    override_config(cfg, options)
    return cfg


def override_config(cfg: CfgNode, options: Sequence[str]) -> None:
    """Override keys like Detectron2's ``merge_from_list``, and check all values.

    Args:
        cfg: modified in place.
        options: KEY VALUE pairs.

    Raises:
        ValueError: an unknown key, a value of the wrong type or out of range, or a key without a
            value. The new name of a renamed key is reported.
    """
    try:
        _refuse_old_keys(options[0::2])
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected KEY VALUE pairs of the configuration, got {list(options)}: {_reason(error)}"
        ) from None
    check_ranges(cfg)


def use_available_device(cfg: CfgNode) -> None:
    """Use the CPU instead of Detectron2's default device if this machine has no GPU.

    Args:
        cfg: modified in place, unless ``MODEL.DEVICE`` differs from the default.
    """
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def _refuse_old_keys(keys: Iterable[str]) -> None:
    old = [f"{key} is now {_RENAMED[key]}" for key in keys if key in _RENAMED]
    if old:
        raise ValueError("; ".join(old))


def _tag(error: yaml.constructor.ConstructorError) -> str:
    """Return which tag a file contains and where; empty for another error."""
    found, mark = re.search(r"for the tag '(\S+)'", error.problem or ""), error.problem_mark
    if found is None or mark is None:
        return ""
    tag = found[1].replace("tag:yaml.org,2002:", "!!")
    return (
        f"{mark.name}, got the tag {tag} in line {mark.line + 1}, and tags can run code. Write the "
        "value itself, a list for a tuple"
    )


def _reason(error: Exception) -> str:
    # str() of a KeyError adds quotes; yaml errors span several lines
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())


def register_datasets(cfg: CfgNode) -> list[str]:
    """Register the datasets that ``DATASETS.CUSTOM`` lists.

    Returns:
        the names of the registered splits.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    return [name for file in cfg.DATASETS.CUSTOM for name in register_custom(file)]


def set_zero_shot(cfg: CfgNode, zero_shot: bool) -> None:
    """Train on base classes only or on all classes: set the softmax and the training sets.

    Args:
        cfg: modified in place. The suffix ``_base`` of training sets is added or removed.
        zero_shot: whether to train on base classes only.
    """
    cfg.MODEL.VILD.ZERO_SHOT = zero_shot
    names = [name.removesuffix("_base") for name in cfg.DATASETS.TRAIN]
    cfg.DATASETS.TRAIN = tuple(f"{name}_base" if zero_shot else name for name in names)


def scale_schedule(cfg: CfgNode, recipe_batch: int, keep: Sequence[str] = ()) -> list[str]:
    """Adapt a recipe's schedule to another batch size (linear scaling, Goyal et al. 2017).

    Training sees as many images as in the recipe: 1/16 of the batch size means 16 times the
    iterations at 1/16 of the learning rate.

    Args:
        cfg: modified in place; ``SOLVER.IMS_PER_BATCH`` is the new batch size.
        recipe_batch: the batch size of the recipe.
        keep: keys set by the user, such as ``SOLVER.MAX_ITER``, that are not changed.

    Returns:
        a summary in one line, then a line for every changed key; none for the recipe's batch size.
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
    changes = []
    if "SOLVER.MAX_ITER" not in keep:
        changes.append(f"{_multiple(recipe_batch, batch)} the iterations")
    if "SOLVER.BASE_LR" not in keep:
        changes.append(f"{_multiple(batch, recipe_batch)} the learning rate")
    summary = f"batch of {batch} instead of the recipe's {recipe_batch}"
    lines = [": ".join(filter(None, (summary, " at ".join(changes))))]
    for key, value in wanted.items():
        section, name = key.split(".")
        old = cfg[section][name]
        if key not in keep and old != value:
            cfg[section][name] = value
            lines.append(f"{key}: {_shown(old)} -> {_shown(value)}")
    return lines


def _multiple(new: int, old: int) -> str:
    """Return "16 times", or "1/16 of"."""
    return (
        f"1/{old // new} of" if new < old and old % new == 0 else f"{round(new / old, 2):g} times"
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
