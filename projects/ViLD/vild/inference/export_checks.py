"""Whether an exported detector finds what the detector finds, on several images.

Shapes: H x W the image in pixels, K classes, D embedding, M detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.inference.predictor import prepare_picture

TOLERANCE = 1e-4  # of scores and masks; of boxes relative to the coordinate, or in pixels below 1

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Check:
    """How an exported file and the detector agree on one image.

    Attributes:
        case: which image, and which vocabulary where it is not the detector's own.
        detections: M.
        boxes: largest difference of a coordinate, in pixels.
        scores: largest difference of a score.
        masks: largest difference of a mask's value in [0, 1]; 0 without masks.
    """

    case: str
    detections: int
    boxes: float
    scores: float
    masks: float


@dataclass(frozen=True)
class Case:
    """An image, a vocabulary, and what the detector finds.

    Attributes:
        name: of both.
        inputs: of the exported detector.
        expected: outputs of the detector.
    """

    name: str
    inputs: Tensors
    expected: Tensors


def make_cases(
    model: nn.Module,
    cfg: CfgNode,
    pictures: Sequence[np.ndarray],
    text: TextEmbeddings | None,
) -> list[Case]:
    """Images and vocabularies with what the detector finds.

    Args:
        model: the detector, on the CPU.
        cfg: ``INPUT`` of it.
        pictures: (H, W, 3) uint8 RGB.
        text: the model's own vocabulary; None where it is no input.

    Returns:
        the images; the first one mirrored and smaller; and, where text embeddings are an input,
        the first one with other classes. The model's vocabulary is in the end as before.

    Raises:
        ValueError: a detector that does not run on the CPU.
    """
    images = {f"picture {n}": prepare_picture(cfg, p) for n, p in enumerate(pictures, start=1)}
    first = images["picture 1"]
    height, width = (max(1, round(side * 0.75)) for side in first.shape[1:])
    smaller = nn.functional.interpolate(first[None].float(), (height, width), mode="bilinear")[0]
    images["picture 1, mirrored and smaller"] = smaller.round().byte().flip(2)
    cases = [
        Case(name, (image, *_vocabulary_inputs(model, text)), run_detector(model, image))
        for name, image in images.items()
    ]
    if text is not None:
        try:
            model.roi_heads.set_vocabulary(_other_classes(text))
            inputs = (first, *_vocabulary_inputs(model, text))
            cases.append(Case("picture 1, other classes", inputs, run_detector(model, first)))
        finally:
            model.roi_heads.set_vocabulary(text)
    return cases


def _vocabulary_inputs(model: nn.Module, text: TextEmbeddings | None) -> Tensors:
    """The model's present vocabulary as inputs; none where it is part of the file."""
    if text is None:
        return ()
    predictor = model.roi_heads.box_predictor
    if model.roi_heads.variant == "ensemble":
        return predictor.classifier.text, predictor.novel
    return (predictor.classifier.text,)


def _other_classes(text: TextEmbeddings) -> TextEmbeddings:
    """Every second class, last one first, base where it was novel and the reverse."""
    own = text.vocabulary
    rows = slice(None, None, -2)
    novel = tuple(not flag for flag in own.novel[rows])
    return text.select(Vocabulary(own.names[rows], own.synonyms[rows], novel))


@torch.no_grad()
def run_detector(model: nn.Module, image: Tensor) -> Tensors:
    """Detectron2's own inference, its outputs in the order of the exported detector.

    Args:
        model: the detector.
        image: (3, H, W).

    Returns:
        see :meth:`vild.modeling.ExportableDetector.forward`.

    Raises:
        ValueError: layers that run on a GPU only.
    """
    try:
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    except NotImplementedError as error:
        raise ValueError(
            f"expected a detector that runs on the CPU, where it is exported: {error}"
        ) from None
    masks = (found.pred_masks,) if found.has("pred_masks") else ()
    return (found.pred_boxes.tensor, found.scores, found.pred_classes, *masks)


def compare(format_name: str, case: Case, found: Tensors) -> Check:
    """Pair the detections: those of nearly equal scores may come in another order.

    Args:
        format_name: for the error.
        case: what was given.
        found: what came out, in the order of ``case.expected``.

    Raises:
        ValueError: a detection that only one of the two has, or that differs.
    """
    boxes, scores, classes, *masks = case.expected
    count = len(boxes)
    if len(found[0]) == count == 0:
        return Check(case.name, 0, 0.0, 0.0, 0.0)
    relative = (boxes[:, None] - found[0]).abs() / boxes[:, None].abs().clamp(min=1)
    difference = torch.maximum(relative.amax(dim=2), (scores[:, None] - found[1]).abs())
    difference[classes[:, None] != found[2]] = torch.inf
    agree = (difference <= TOLERANCE).any(dim=1)
    if len(found[0]) == count and agree.all():
        partner = difference.argmin(dim=1)
        others = [value[partner] for value in found]
        gap = [float((a - b).abs().max()) for a, b in zip(case.expected, others, strict=True)]
        if len(partner.unique()) == count and (not masks or gap[3] <= TOLERANCE):
            return Check(case.name, count, gap[0], gap[1], gap[3] if masks else 0.0)
    raise ValueError(
        f"the {format_name} file finds {len(found[0])} objects in {case.name} and the detector "
        f"{count}, of which {int(agree.sum())} agree to {TOLERANCE}"
        f"{' apart from their masks' if masks else ''}; nothing was written. Where nearly equal "
        "scores or overlaps decide, another sample image may do"
    )
