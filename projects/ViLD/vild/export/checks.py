"""Checks that an exported detector gives the same detections as the original, on several images.

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
from vild.inference.predictor import prepare_image

TOLERANCE = 1e-4  # absolute for scores and masks; for boxes relative to max(coordinate, 1)

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Check:
    """The agreement of an exported file with the detector on one image.

    Attributes:
        case: name of the image, and of the vocabulary unless it is the detector's.
        detections: M.
        boxes: maximum difference of a coordinate, in pixels.
        scores: maximum difference of a score.
        masks: maximum difference of a mask value in [0, 1]; 0 without masks.
    """

    case: str
    detections: int
    boxes: float
    scores: float
    masks: float


@dataclass(frozen=True)
class Case:
    """An image and a vocabulary with the expected detections.

    Attributes:
        name: name of image and vocabulary.
        inputs: inputs of the exported detector.
        expected: outputs of the original detector.
    """

    name: str
    inputs: Tensors
    expected: Tensors


def make_cases(
    model: nn.Module,
    cfg: CfgNode,
    samples: Sequence[np.ndarray],
    text: TextEmbeddings | None,
) -> list[Case]:
    """Make the test cases, with the detections of the original detector.

    Args:
        model: the detector, on the CPU.
        cfg: its configuration; ``INPUT`` is used.
        samples: images (H, W, 3) uint8 RGB.
        text: the model's vocabulary; None if it is not an input.

    Returns:
        The images; the first one mirrored and smaller; and, if text embeddings are an input, the
        first one with other classes. The model's vocabulary is restored at the end.

    Raises:
        ValueError: the detector does not run on the CPU.
    """
    images = {f"image {n}": prepare_image(cfg, p) for n, p in enumerate(samples, start=1)}
    first = images["image 1"]
    height, width = (max(1, round(side * 0.75)) for side in first.shape[1:])
    smaller = nn.functional.interpolate(first[None].float(), (height, width), mode="bilinear")[0]
    images["image 1, mirrored and smaller"] = smaller.round().byte().flip(2)
    cases = [
        Case(name, (image, *_vocabulary_inputs(model, text)), run_detector(model, image))
        for name, image in images.items()
    ]
    if text is not None:
        try:
            model.roi_heads.set_vocabulary(_other_classes(text))
            inputs = (first, *_vocabulary_inputs(model, text))
            cases.append(Case("image 1, other classes", inputs, run_detector(model, first)))
        finally:
            model.roi_heads.set_vocabulary(text)
    return cases


def _vocabulary_inputs(model: nn.Module, text: TextEmbeddings | None) -> Tensors:
    """Return the model's current vocabulary as inputs; none if it is part of the file."""
    if text is None:
        return ()
    predictor = model.roi_heads.box_predictor
    if model.roi_heads.variant.image_head:
        return predictor.classifier.text, predictor.novel
    return (predictor.classifier.text,)


def _other_classes(text: TextEmbeddings) -> TextEmbeddings:
    """Return every second class, in reverse order, with inverted novel flags."""
    own = text.vocabulary
    rows = slice(None, None, -2)
    novel = tuple(not flag for flag in own.novel[rows])
    return text.select(Vocabulary(own.names[rows], own.synonyms[rows], novel))


@torch.no_grad()
def run_detector(model: nn.Module, image: Tensor) -> Tensors:
    """Run Detectron2's inference, with outputs in the order of the exported detector.

    Args:
        model: the detector.
        image: (3, H, W).

    Returns:
        See :meth:`vild.export.ExportableDetector.forward`.

    Raises:
        ValueError: the detector has layers that run only on a GPU.
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
    """Compare the detections, pairing them first: nearly equal scores may be ordered differently.

    Args:
        format_name: name of the format, for the error.
        case: inputs and expected outputs.
        found: actual outputs, in the order of ``case.expected``.

    Raises:
        ValueError: a detection differs, or only one of the two has it.
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
        f"{count}, of which {int(agree.sum())} agree within {TOLERANCE}"
        f"{' apart from their masks' if masks else ''}; nothing was written. If nearly equal "
        "scores or overlaps are the reason, another sample image may work"
    )
