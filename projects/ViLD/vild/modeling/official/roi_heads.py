"""ViLD's RoI heads with the official crops, clipping, NMS and mask head.

Shapes: N images, R regions in the whole batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.norms import normalise
from vild.modeling.official.backbone import official_norm
from vild.modeling.official.boxes import from_inclusive, is_zero, last_pixel, to_inclusive
from vild.modeling.official.regions import RegionCrops
from vild.modeling.output_layers import ViLDOutputLayers
from vild.modeling.roi_heads import ViLDROIHeads


class InclusiveOutputLayers(ViLDOutputLayers):
    """ViLD's output layers with clipping and NMS in inclusive coordinates.

    Boxes that clipping reduces to zeros never become detections, as in the official code.
    """

    def select(
        self, boxes: Tensor, chunks: Iterable[Tensor], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`ViLDOutputLayers.select`."""
        boxes = to_inclusive(boxes)
        height, width = last_pixel(image_size)
        clipped = boxes.minimum(boxes.new_tensor([width, height, width, height]))
        # select() skips non-finite rows and keeps the indices of the others
        boxes = boxes.masked_fill(is_zero(clipped)[:, None], float("nan"))
        boxes, *others = super().select(boxes, chunks, (height, width))
        return from_inclusive(boxes), *others


@ROI_HEADS_REGISTRY.register()
class OfficialROIHeads(ViLDROIHeads):
    """ViLD's RoI heads with :class:`RegionCrops`; ``POOLER_TYPE`` is ignored."""

    box_predictor_class = InclusiveOutputLayers

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        made = super()._init_box_head(cfg, input_shape)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        strides = [input_shape[name].stride for name in made["box_in_features"]]
        return {**made, "box_pooler": RegionCrops(size, strides)}

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        made = super()._init_mask_head(cfg, input_shape)
        if not made:
            return made
        size = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        strides = [input_shape[name].stride for name in made["mask_in_features"]]
        return {**made, "mask_pooler": RegionCrops(size, strides)}


@ROI_MASK_HEAD_REGISTRY.register()
class OfficialMaskHead(BaseMaskRCNNHead):
    """A class-agnostic mask head; all layers, the deconvolution too, have a bias and a norm.

    Args:
        input_shape: channels of a pooled region.
        num_conv: number of convolutions.
        conv_dim: channels of a convolution and of the deconvolution.
        norm: see :func:`vild.modeling.norms.make_norm`.
        **kwargs: arguments of BaseMaskRCNNHead.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_conv: int, conv_dim: int, norm: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.convs = nn.ModuleList()
        channels = input_shape.channels
        for _ in range(num_conv):
            self.convs.append(nn.Conv2d(channels, conv_dim, kernel_size=3, padding=1))
            channels = conv_dim
        self.convs.append(nn.ConvTranspose2d(channels, conv_dim, kernel_size=2, stride=2))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.norms = nn.ModuleList(official_norm(norm, conv_dim) for _ in self.convs)
        self.predictor = nn.Conv2d(conv_dim, 1, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.001)  # masks start at 0.5, as in Detectron2
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read the arguments from Detectron2's ``MODEL.ROI_MASK_HEAD``."""
        head = cfg.MODEL.ROI_MASK_HEAD
        own = {"num_conv": head.NUM_CONV, "conv_dim": head.CONV_DIM, "norm": head.NORM}
        return {**super().from_config(cfg, input_shape), "input_shape": input_shape, **own}

    def layers(self, x: Tensor) -> Tensor:
        """Map pooled regions (R, C, P, P) to logits (R, 1, 2 P, 2 P)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(normalise(norm, conv(x)))
        return self.predictor(x)
