"""The RPN of the official code (dataloader/anchor.py, heads.py: RpnHead, ops/roi_ops.py).

Shapes: N images, L levels of the pyramid, A anchors per location, R proposals of an image.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.official.backbone import official_norm
from vild.modeling.official.boxes import from_inclusive, is_zero, last_pixel, to_inclusive


@ANCHOR_GENERATOR_REGISTRY.register()
class InclusiveAnchorGenerator(DefaultAnchorGenerator):
    """Anchors whose last pixel is inside: one pixel wider and higher than the nominal size."""

    def generate_cell_anchors(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return anchors (A, 4) in Detectron2's form, centred at 0."""
        return from_inclusive(super().generate_cell_anchors(*args, **kwargs))


@RPN_HEAD_REGISTRY.register()
class OfficialRPNHead(StandardRPNHead):
    """An RPN head with convolutions shared by all levels and a separate norm for each level.

    Args:
        in_channels: channels of the features.
        num_anchors: A.
        conv_dims: channels of each of two or more convolutions; -1 keeps the number of channels.
        num_levels: L.
        norm: see :func:`vild.modeling.norms.make_norm`.
        box_dim: 4.

    Raises:
        ValueError: fewer than two convolutions.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        conv_dims: list[int],
        num_levels: int,
        norm: str,
        box_dim: int = 4,
    ) -> None:
        if len(conv_dims) < 2:
            raise ValueError(
                f"expected two or more convolutions in MODEL.RPN.CONV_DIMS, got {conv_dims}"
            )
        super().__init__(
            in_channels=in_channels, num_anchors=num_anchors, box_dim=box_dim, conv_dims=conv_dims
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(official_norm(norm, conv.out_channels) for conv in self.conv)
            for _ in range(num_levels)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from Detectron2's keys; the norm is that of the FPN."""
        found = super().from_config(cfg, input_shape)
        return {**found, "num_levels": len(input_shape), "norm": cfg.MODEL.FPN.NORM}

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (N, A, H, W) and deltas (N, 4 A, H, W) for L features (N, C, H, W)."""
        logits, deltas = [], []
        for x, norms in zip(features, self.norms, strict=True):
            for conv, norm in zip(self.conv, norms, strict=True):
                x = functional.relu(norm(conv(x)))
            logits.append(self.objectness_logits(x))
            deltas.append(self.anchor_deltas(x))
        return logits, deltas


@PROPOSAL_GENERATOR_REGISTRY.register()
class OfficialRPN(RPN):
    """Detectron2's RPN with clipping and NMS in inclusive coordinates.

    Boxes that clipping reduces to zeros are dropped before the best R are kept. If fewer than R
    remain, the official code pads with empty boxes of score 0; this class does not.
    """

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See :meth:`detectron2.modeling.proposal_generator.RPN.predict_proposals`."""
        limit = self.post_nms_topk[self.training]
        found = find_top_rpn_proposals(
            [to_inclusive(boxes) for boxes in self._decode_proposals(anchors, pred_anchor_deltas)],
            pred_objectness_logits,
            [last_pixel(size) for size in image_sizes],
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            sum(logits.shape[1] for logits in pred_objectness_logits),  # all that NMS keeps
            self.min_box_size - 1,
            self.training,
        )
        proposals = []
        for own, image_size in zip(found, image_sizes, strict=True):
            # The official code marks suppressed boxes by zeros and counts the others, so a box
            # that is clipped to the first pixel is not counted either.
            own = own[~is_zero(own.proposal_boxes.tensor)][:limit]
            result = Instances(image_size)
            result.proposal_boxes = Boxes(from_inclusive(own.proposal_boxes.tensor))
            result.objectness_logits = own.objectness_logits
            proposals.append(result)
        return proposals
