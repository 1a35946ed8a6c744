"""The detector as one function of tensors, for TorchScript's tracing and for ONNX.

Neither records what Python decides by looking at values. So what :meth:`ViLDOutputLayers.inference`
does a few regions at a time is done at once here, and the suppression, whose number of rounds
depends on the image, is compiled (TorchScript) or one operator (ONNX). The detections are the
same.

Shapes: R regions, K classes, D embedding, M detections, n candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from vild.modeling.roi_heads import WITH_TEACHER, ViLDROIHeads
from vild.modeling.suppression import suppress_in_rounds

# A candidate has to exceed a bound that the M-th best of the classes reaches: a little below it.
BELOW = 1 - 1e-6

_compiled_suppress = torch.jit.script_if_tracing(suppress_in_rounds)


class ExportableDetector(nn.Module):
    """What Detectron2 calls ``model.inference(..., do_postprocess=False)`` of one image.

    Args:
        model: the detector; in evaluation mode, on the CPU.
        for_onnx: whether suppression becomes ONNX's ``NonMaxSuppression``.

    Raises:
        ValueError: a detector that needs precomputed proposals or the teacher, has heads of another
            kind, or has no limit to the number of detections.
    """

    def __init__(self, model: nn.Module, *, for_onnx: bool = False) -> None:
        super().__init__()
        check_exportable(model)
        self.model, self.for_onnx = model, for_onnx

    def forward(
        self, image: Tensor, text: Tensor | None = None, novel: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Detections of an image.

        Args:
            image: (3, H, W) uint8 or float32 in [0, 255], channels as the configuration says.
            text: (K, D) float32, rows of unit norm; the model's own vocabulary by default.
            novel: (K,) bool, which classes are novel (ViLD-ensemble); the model's own by default.

        Returns:
            boxes (M, 4) float32 in pixels of ``image``; scores (M,) float32; classes (M,) int64,
            rows of ``text``; and, where the model has them, masks (M, 1, 28, 28) float32 in [0, 1],
            each spread over its box. Best first.
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
        if self.for_onnx:  # whose GroupNorm fails on no boxes at all: there is always one more
            more = torch.cat([boxes, boxes.new_zeros(1, 4)])
            masks = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(more)]))[:-1]
        else:
            masks = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(boxes)]))
        return boxes, scores, classes, masks.sigmoid()

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (M, 4), scores and classes of the best among boxes (R, 4) and scores (R, K).

        See :func:`vild.modeling.select_detections`; the bound that spares most candidates a look
        comes without a branch, also where there are fewer classes than detections.
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
    """ONNX's own operator: greedy suppression within each class of what exceeds a bound."""

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, bound: Tensor, overlap: float, wanted: int
    ) -> Tensor:
        """Rows (0, class, region) (n, 3) int64, as the operator gives them, in another order."""
        regions, classes = (scores > bound).nonzero(as_tuple=True)
        ranks = scores[regions, classes].sort(descending=True, stable=True).indices
        regions, classes = regions[ranks], classes[ranks]
        kept = suppress_in_rounds(boxes[regions], classes, overlap, wanted)
        return torch.stack([torch.zeros_like(kept), classes[kept], regions[kept]], dim=1)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, bound: Any, overlap: float, wanted: int) -> Any:
        """The operator, in the graph ``g``."""

        def constant(values: list[float] | list[int], dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(values, dtype=dtype))

        first = constant([0], torch.int64)
        return g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, first),
            g.op("Unsqueeze", g.op("Transpose", scores, perm_i=[1, 0]), first),
            constant([wanted], torch.int64),  # of a class
            constant([overlap], torch.float32),
            g.op("Reshape", bound, constant([1], torch.int64)),
        )


def check_exportable(model: nn.Module) -> None:
    """Refuse a detector that :class:`ExportableDetector` does not know.

    Raises:
        ValueError: see there.
    """
    heads = getattr(model, "roi_heads", None)
    # heads that are derived from them select otherwise, as the official ones do
    derived = type(heads) is not ViLDROIHeads
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, ViLDROIHeads) or derived:
        raise ValueError(
            f"expected a detector with ViLDROIHeads, got {type(model).__name__} with "
            f"{type(heads).__name__}, which is not exported"
        )
    if model.proposal_generator is None or heads.variant in WITH_TEACHER:
        raise ValueError(
            f"expected a detector that finds its regions itself, got the variant {heads.variant!r} "
            "on precomputed proposals: those would have to be exported, too"
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
    """Boxes (R, 4) within an image (3, H, W)."""
    height, width = image.shape[-2], image.shape[-1]
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
