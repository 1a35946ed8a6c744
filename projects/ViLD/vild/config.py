"""Configuration keys of this project: ``MODEL.VILD`` and ``SOLVER.AMP.PRECISION``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from vild.config_checks import check_ranges
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


def add_vild_config(cfg: CfgNode) -> None:
    """Add the keys of this project, with their defaults, to a Detectron2 configuration.

    Sections refer to the paper (arXiv 2104.13921). The box head is configured by Detectron2's keys
    in ``MODEL.ROI_BOX_HEAD``; its ``NORM`` applies to every layer of the head.
    """
    cfg.MODEL.VILD = CfgNode()
    # "text" (ViLD-text), "image" (ViLD-image), "vild" (one head with both losses) or "ensemble"
    # (ViLD-ensemble, two heads); sec. 3.2 to 3.4. For evaluation also "clip" (CLIP on cropped
    # regions) and "text_clip" (ViLD-text + CLIP), the baselines of sec. 4
    cfg.MODEL.VILD.VARIANT = "ensemble"
    # output of tools/extract_text_embeddings.py: names, novel flags, embeddings, temperature
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = ""
    # tau, the divisor of cosines (sec. 3.2); 0: the teacher's, from the text embeddings
    cfg.MODEL.VILD.TEMPERATURE = 0.0
    # whether training uses only base classes: novel ones are left out of the softmax
    cfg.MODEL.VILD.ZERO_SHOT = True
    # ensemble: weights of the text head's probabilities for base and for novel classes; lambda
    # and 1 - lambda in sec. 3.4
    cfg.MODEL.VILD.FUSION_WEIGHTS = [2 / 3, 1 / 3]
    # whether a score is the geometric mean of class probability and objectness; off in the paper
    cfg.MODEL.VILD.OBJECTNESS = False
    # yaml files that describe custom datasets (see datasets/README.md)
    cfg.MODEL.VILD.DATASETS = []
    # large-scale jitter: minimum scale, maximum scale, side of the square image in pixels
    # (appendix); the square is padded with MODEL.PIXEL_MEAN. [] for Detectron2's
    # INPUT.MIN_SIZE_TRAIN
    cfg.MODEL.VILD.LARGE_SCALE_JITTER = []
    # the teacher if it runs during training: open_clip's names of model and weights, and how crops
    # are made square ("stretch", "pad" or "clip"); a store must have been made with the same mode
    cfg.MODEL.VILD.TEACHER = ["ViT-B-32", "openai"]
    cfg.MODEL.VILD.CROP_MODE = "stretch"
    # distillation (sec. 3.3): source of the teacher's region embeddings, "store" (computed once by
    # tools/extract_image_embeddings.py) or "online" (by the frozen teacher, during training)
    cfg.MODEL.VILD.DISTILL = CfgNode()
    cfg.MODEL.VILD.DISTILL.SOURCE = "store"
    # folder of the store for the training set: embeddings, or proposals if SOURCE is "online"
    cfg.MODEL.VILD.DISTILL.STORE = ""
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
            out of range.
    """
    cfg = get_cfg()
    add_vild_config(cfg)
    try:
        cfg.merge_from_file(os.fspath(file), allow_unsafe=False)
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
            value.
    """
    try:
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
    """Register the datasets that ``MODEL.VILD.DATASETS`` lists.

    Returns:
        the names of the registered splits.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    return [name for file in cfg.MODEL.VILD.DATASETS for name in register_custom(file)]


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
