"""The project's own configuration keys: ``MODEL.VILD`` and ``SOLVER.AMP.PRECISION``."""

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
    # of the forward pass in training where Detectron2's SOLVER.AMP.ENABLED is on: "fp16" (its own
    # AMP, with a gradient scaler, on GPUs) or "bf16" (without one; GPUs from Ampere on, and CPUs)
    cfg.SOLVER.AMP.PRECISION = "fp16"


def read_config(file: str | os.PathLike[str], options: Sequence[str] = ()) -> CfgNode:
    """Detectron2's configuration with this project's keys, from a yaml file.

    Args:
        file: the yaml, with what it names as ``_BASE_``: plain values, no tags of Python, which
            run code.
        options: KEY VALUE pairs that override it.

    Raises:
        ValueError: a file that cannot be read, a tag, a key that does not exist, or a value of
            another type or out of its range.
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
    except (TypeError, AttributeError, RecursionError):  # by what Detectron2 and yacs expect
        raise ValueError(
            f"expected keys and values in {file}, and in _BASE_ the names of files that do not "
            "refer back to it"
        ) from None
    override_config(cfg, options)
    return cfg


def override_config(cfg: CfgNode, options: Sequence[str]) -> None:
    """Override keys as Detectron2's ``merge_from_list``, and check all values.

    Args:
        cfg: changed in place.
        options: KEY VALUE pairs.

    Raises:
        ValueError: a key that does not exist, a value of another type or out of its range, or a key
            without a value.
    """
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected KEY VALUE pairs of the configuration, got {list(options)}: {_reason(error)}"
        ) from None
    check_ranges(cfg)


def use_available_device(cfg: CfgNode) -> None:
    """The CPU instead of Detectron2's default device where this machine has no GPU.

    Args:
        cfg: changed in place, unless ``MODEL.DEVICE`` is another device than the default.
    """
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def _tag(error: yaml.constructor.ConstructorError) -> str:
    """Where a file has a tag, and which; empty for another error."""
    found, mark = re.search(r"for the tag '(\S+)'", error.problem or ""), error.problem_mark
    if found is None or mark is None:
        return ""
    tag = found[1].replace("tag:yaml.org,2002:", "!!")
    return (
        f"{mark.name}, got the tag {tag} in line {mark.line + 1}, and tags can run code. Write the "
        "value itself, a list for a tuple"
    )


def _reason(error: Exception) -> str:
    # a KeyError shows its text as a literal; yaml's errors have several lines
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())


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
