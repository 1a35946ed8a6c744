"""The detector as a function of tensors, which TorchScript tracing and ONNX export can record.

Tracing does not record Python control flow that depends on values. All regions are therefore scored
at once, where :meth:`ViLDOutputLayers.inference` works in chunks, and NMS, whose number of rounds
depends on the image, is a compiled function (TorchScript) or one operator (ONNX). The detections
are the same.

Shapes: R regions, K classes, D embedding, M detections, n candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from vild.modeling.roi_heads import ViLDROIHeads
from vild.modeling.suppression import suppress_in_rounds

# Candidates must exceed a bound, which is a little below the M-th best class maximum to keep that.
BELOW = 1 - 1e-6

_compiled_suppress = torch.jit.script_if_tracing(suppress_in_rounds)


class ExportableDetector(nn.Module):
    """The exportable form of ``model.inference(..., do_postprocess=False)`` on one image.

    Args:
        model: the detector; in evaluation mode, on the CPU.
        for_onnx: whether NMS becomes ONNX's ``NonMaxSuppression``.

    Raises:
        ValueError: the detector needs precomputed proposals or the teacher, has unsupported heads,
            or does not limit the number of detections.
    """

    def __init__(self, model: nn.Module, *, for_onnx: bool = False) -> None:
        super().__init__()
        check_exportable(model)
        self.model, self.for_onnx = model, for_onnx

    def forward(
        self, image: Tensor, text: Tensor | None = None, novel: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Detect objects in one image.

        Args:
            image: (3, H, W) uint8 or float32 in [0, 255]; channel order as in the configuration.
            text: (K, D) float32, L2-normalised; the model's vocabulary by default.
            novel: (K,) bool, which classes are novel (ViLD-ensemble); the model's by default.

        Returns:
            boxes (M, 4) float32 in pixels of ``image``; scores (M,) float32; classes (M,) int64,
            rows of ``text``; and, if the model has a mask head, masks (M, 1, 28, 28) float32 in
            [0, 1], each relative to its box. Best first.
        """
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        images = self.model.preprocess_image([{"image": image}])
        features = self.model.backbone(images.tensor)
        (proposals,), _ = self.model.proposal_generator(images, features, None)
        pooled = heads.box_pooler(
            [features[f] for f in heads.box_in_features], [proposals.proposal_boxes]
        )
        embeddings, deltas = predictor(heads.box_head(pooled))
        image_embeddings = None if heads.image_head is None else heads.image_head(pooled)
        scores = predictor.class_scores(embeddings, image_embeddings, classes=text, novel=novel)
        scores = predictor.with_objectness(scores, proposals)
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals.proposal_boxes.tensor)
        boxes, scores, classes = self._select(_clipped(boxes, image), scores)
        if not heads.mask_on:
            return boxes, scores, classes
        levels = [features[f] for f in heads.mask_in_features]
        if self.for_onnx:  # ONNX's GroupNorm fails on zero boxes, so one is added
            more = torch.cat([boxes, boxes.new_zeros(1, 4)])
            masks = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(more)]))[:-1]
        else:
            masks = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(boxes)]))
        return boxes, scores, classes, masks.sigmoid()

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select boxes (M, 4), scores and classes from boxes (R, 4) and scores (R, K).

        See :func:`vild.modeling.select_detections`. The lower bound that excludes most candidates
        is computed without a branch, even with fewer classes than detections.
        """
        predictor = self.model.roi_heads.box_predictor
        wanted, overlap = predictor.test_topk_per_image, predictor.test_nms_thresh
        best = torch.cat([scores.amax(dim=0), scores.new_full((wanted,), -torch.inf)])
        bound = (best.topk(wanted).values[-1] * BELOW).clamp(min=predictor.test_score_thresh)
        if self.for_onnx:
            found = _OnnxSuppression.apply(boxes, scores, bound, overlap, wanted)
            regions, classes = found[:, 2], found[:, 1]
            order = scores[regions, classes].sort(descending=True).indices[:wanted]
        else:
            regions, classes = (scores > bound).nonzero(as_tuple=True)
            ranks = scores[regions, classes].sort(descending=True, stable=True).indices
            kept = _compiled_suppress(boxes[regions[ranks]], classes[ranks], overlap, wanted)
            order = ranks[kept]
        regions, classes = regions[order], classes[order]
        return boxes[regions], scores[regions, classes], classes


class _OnnxSuppression(torch.autograd.Function):
    """ONNX's NMS operator: greedy per-class NMS of the scores that exceed a bound."""

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, bound: Tensor, overlap: float, wanted: int
    ) -> Tensor:
        """Return rows (0, class, region), (n, 3) int64, like the operator but in another order."""
        regions, classes = (scores > bound).nonzero(as_tuple=True)
        ranks = scores[regions, classes].sort(descending=True, stable=True).indices
        regions, classes = regions[ranks], classes[ranks]
        kept = suppress_in_rounds(boxes[regions], classes, overlap, wanted)
        return torch.stack([torch.zeros_like(kept), classes[kept], regions[kept]], dim=1)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, bound: Any, overlap: float, wanted: int) -> Any:
        """Add the operator to the graph ``g``."""

        def constant(values: list[float] | list[int], dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(values, dtype=dtype))

        first = constant([0], torch.int64)
        return g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, first),
            g.op("Unsqueeze", g.op("Transpose", scores, perm_i=[1, 0]), first),
            constant([wanted], torch.int64),  # per class
            constant([overlap], torch.float32),
            g.op("Reshape", bound, constant([1], torch.int64)),
        )


def check_exportable(model: nn.Module) -> None:
    """Refuse a detector that :class:`ExportableDetector` does not support.

    Raises:
        ValueError: under the conditions listed in that class.
    """
    heads = getattr(model, "roi_heads", None)
    # subclasses may select detections differently, as the official heads do
    derived = type(heads) is not ViLDROIHeads
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, ViLDROIHeads) or derived:
        raise ValueError(
            f"expected a detector with ViLDROIHeads, got {type(model).__name__} with "
            f"{type(heads).__name__}, which is not exported"
        )
    if model.proposal_generator is None or heads.variant.teacher_at_test:
        raise ValueError(
            "expected a detector that finds its regions itself, got the variant "
            f"{heads.variant.name!r} on precomputed proposals: those would have to be exported, too"
        )
    if heads.keypoint_on or (heads.mask_on and not isinstance(heads.mask_head, BaseMaskRCNNHead)):
        raise ValueError(
            "expected no keypoints, and a mask head of Mask R-CNN's kind, whose output does not "
            "depend on the class: nothing else is exported"
        )
    if heads.box_predictor.test_topk_per_image < 1:
        raise ValueError(
            "expected a limit to the number of detections, got TEST.DETECTIONS_PER_IMAGE: "
            f"{heads.box_predictor.test_topk_per_image}"
        )
    if model.training:
        raise ValueError("expected a detector in evaluation mode: call model.eval() first")


def _clipped(boxes: Tensor, image: Tensor) -> Tensor:
    """Clip boxes (R, 4) to an image (3, H, W)."""
    height, width = image.shape[-2], image.shape[-1]
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
